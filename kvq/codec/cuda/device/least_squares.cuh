// The fit `mse` of codec/fit.h: up to eight candidates, four at a time, then the best once more.
//
// Cost: 8 operations a number and candidate (9 if affine), four candidates share the loads. Lane p
// of a team does the divisions of candidates p and p + 4 alone.
#pragma once

#include "kvq/codec/cuda/device/team.cuh"

namespace kvq::cuda {

struct Fitted {
  float scale;  // fp16 values
  float center;
};

struct Best {
  float gain;
  float scale;
  float center;
  int candidate;

  __device__ __forceinline__ void take(const Best& later) {
    if (later.gain > gain) *this = later;
  }

  // Over the lanes of a team: the greatest gain, the first of equals.
  __device__ __forceinline__ void join() {
#pragma unroll
    for (int distance = 1; distance < kTeam; distance *= 2) {
      const Best found{other(gain, distance), other(scale, distance), other(center, distance),
                       __shfl_xor_sync(kAllLanes, candidate, distance)};
      if (found.gain > gain || (found.gain == gain && found.candidate < candidate)) *this = found;
    }
  }
};

// Lane p's `own` of every lane of the team.
__device__ __forceinline__ void share(float own, float (&all)[kTeam]) {
#pragma unroll
  for (int p = 0; p < kTeam; ++p) all[p] = __shfl_sync(kAllLanes, own, p, kTeam);
}

// Partial sums of kTrials trials, in units.
template <int kTrials>
struct SymmetricSums {
  float product[kTrials] = {};
  float square[kTrials] = {};

  __device__ __forceinline__ void add(const CodeUnits& units, float value,
                                      const float (&inverse_scale)[kTrials]) {
#pragma unroll
    for (int i = 0; i < kTrials; ++i) {
      const float code = mirrored_code(units, value * inverse_scale[i], units.middle);
      const float level = units.middle - code;
      product[i] += value * level;
      square[i] = __fmaf_rn(level, level, square[i]);  // exact, and so is the sum
    }
  }
};

__device__ __forceinline__ Best symmetric_fit(const CodeUnits& units, float product, float square,
                                              int candidate) {
  product *= units.codes_a_unit;
  square *= units.codes_a_unit * units.codes_a_unit;
  const float scale = square > 0.0F ? product / square : 0.0F;
  return {product * scale, scale, 0.0F, candidate};
}

__device__ __forceinline__ Fitted fit_symmetric(const PackTensor& tensor, const Group& group,
                                                int p) {
  float sum = 0.0F;
  float seen = 0.0F;
  for_each_member(group, [&](float value) {
    sum += fabsf(value);
    seen = fmaxf(seen, fabsf(value));
  });
  const float extreme = greatest(seen, group);
  // Of zeros alone, the greatest is the least one's negative (find_range).
  const float widest = (extreme > 0.0F ? extreme : -*group.last) / tensor.middle_code;
  if (!tensor.mean_square) return {round_to_half(widest), 0.0F};

  const CodeUnits units = tensor.units;
  const float mean = total(sum, group) / group.members;
  Best best{0.0F, widest, 0.0F, kMaxCandidates};
  for (int first = 0; first < tensor.candidate_count; first += kTeam) {
    const int own = first + p;
    const float base = tensor.offset[own] != 0.0F ? mean : widest;
    float inverse_scale[kTeam];
    share(inverse(base * tensor.ratio[own]) * units.unit, inverse_scale);
    SymmetricSums<kTeam> sums;
    for_each_member(group, [&](float value) { sums.add(units, value, inverse_scale); });
    const float product = total_of_own(sums.product, p, group);
    const float square = total_of_own(sums.square, p, group);
    if (own < tensor.candidate_count) best.take(symmetric_fit(units, product, square, own));
  }
  best.join();

  const float inverse_scale[1] = {inverse(best.scale) * units.unit};
  SymmetricSums<1> sums;
  for_each_member(group, [&](float value) { sums.add(units, value, inverse_scale); });
  best.take(symmetric_fit(units, total(sums.product[0], group), total(sums.square[0], group), 0));
  return {round_to_half(best.scale), 0.0F};
}

template <int kTrials>
struct AffineSums {
  float product[kTrials] = {};
  float square[kTrials] = {};
  float codes[kTrials] = {};

  __device__ __forceinline__ void add(const CodeUnits& units, float difference,
                                      const float (&inverse_scale)[kTrials],
                                      const float (&shift)[kTrials]) {
#pragma unroll
    for (int i = 0; i < kTrials; ++i) {
      const float code = units.last - mirrored_code(units, difference * inverse_scale[i], shift[i]);
      product[i] += difference * code;
      square[i] = __fmaf_rn(code, code, square[i]);  // exact, and so is the sum
      codes[i] += code;
    }
  }
};

// Of one affine group.
struct Spread {
  float middle;
  float total;  // of value - middle
  float members;
  float middle_code;
};

__device__ __forceinline__ Best affine_fit(const CodeUnits& units, const Spread& spread,
                                           float product, float square, float codes,
                                           int candidate) {
  product *= units.codes_a_unit;
  square *= units.codes_a_unit * units.codes_a_unit;
  codes *= units.codes_a_unit;
  const float mean = codes / spread.members;
  const float covariance = product - spread.total * mean;
  const float variance = square - codes * mean;
  const float scale = covariance > 0.0F && variance > 0.0F ? covariance / variance : 0.0F;
  const float center =
      spread.middle + (spread.total / spread.members - scale * (mean - spread.middle_code));
  return {covariance * scale, scale, center, candidate};
}

__device__ __forceinline__ Fitted fit_affine(const PackTensor& tensor, const Group& group, int p) {
  const Range range = find_range(group);
  const float base = (range.high - range.low) / tensor.last_code;
  const float middle = (range.high + range.low) * 0.5F;
  if (!tensor.mean_square) return {round_to_half(base), round_to_half(middle)};

  const CodeUnits units = tensor.units;
  float sum = 0.0F;
  for_each_member(group, [&](float value) { sum += value - middle; });
  const Spread spread{middle, total(sum, group), group.members, tensor.middle_code};
  Best best{0.0F, base, middle, kMaxCandidates};
  for (int first = 0; first < tensor.candidate_count; first += kTeam) {
    const int own = first + p;
    float inverse_scale[kTeam];
    share(inverse(base * tensor.ratio[own]) * units.unit, inverse_scale);
    float shift[kTeam];
    share((tensor.middle_code - tensor.offset[own]) * units.unit, shift);
    AffineSums<kTeam> sums;
    for_each_member(group,
                    [&](float value) { sums.add(units, value - middle, inverse_scale, shift); });
    const float product = total_of_own(sums.product, p, group);
    const float square = total_of_own(sums.square, p, group);
    const float codes = total_of_own(sums.codes, p, group);
    if (own < tensor.candidate_count) {
      best.take(affine_fit(units, spread, product, square, codes, own));
    }
  }
  best.join();

  const float inverse_best = inverse(best.scale);
  const float inverse_scale[1] = {inverse_best * units.unit};
  const float shift[1] = {(tensor.middle_code - (best.center - middle) * inverse_best) *
                          units.unit};
  AffineSums<1> sums;
  for_each_member(group,
                  [&](float value) { sums.add(units, value - middle, inverse_scale, shift); });
  best.take(affine_fit(units, spread, total(sums.product[0], group), total(sums.square[0], group),
                       total(sums.codes[0], group), 0));
  return {round_to_half(best.scale), round_to_half(best.center)};
}

}  // namespace kvq::cuda
