// The fits of fit.h for one vector of lines: lanes are lines, so no sum crosses a lane but for the
// groups of two or four adjacent lines.
//
// Cost: a candidate reads the group once from L1 and does 11 operations a number (12 if affine);
// eight candidates and the final one are some 100 operations a number, 90 % of packing.
#include "kvq/codec/fit_candidates.inl"
#include "kvq/codec/fit_vector.inl"

namespace kvq {
namespace {

struct Group {
  const Floats* values;  // [members]
  int members;           // of a line, a multiple of 16
  int group_lines;
  int levels;
  float mid() const { return 0.5F * static_cast<float>(levels - 1); }
  float last() const { return static_cast<float>(levels - 1); }
  float count() const { return static_cast<float>(members * group_lines); }
};

struct Fitted {
  Floats scale;  // fp16 values
  Floats center;
};

struct Best {
  Floats gain;
  Floats scale;
  Floats center;
  void take(Floats other_gain, Floats other_scale, Floats other_center) {
    const Ints better = other_gain > gain;
    gain = better ? other_gain : gain;
    scale = better ? other_scale : scale;
    center = better ? other_center : center;
  }
};

struct Sum {
  Floats partial[4] = {};
  Floats total(int group_lines) const {
    Floats sum = (partial[0] + partial[2]) + (partial[1] + partial[3]);
    if (group_lines >= 2) sum = sum + exchange<1>(sum);
    if (group_lines == 4) sum = sum + exchange<2>(sum);
    return sum;
  }
};

template <typename Function>
inline Floats sum_over(const Group& group, Function function) {
  Sum sum;
  for (int m = 0; m < group.members; m += 4) {
    for (int p = 0; p < 4; ++p) sum.partial[p] += function(group.values[m + p]);
  }
  return sum.total(group.group_lines);
}

struct Range {
  Floats low;
  Floats high;
};

inline Range find_range(const Group& group) {
  Range range{group.values[0], group.values[0]};
  for (int m = 1; m < group.members; ++m) {
    range.low = min(range.low, group.values[m]);
    range.high = max(range.high, group.values[m]);
  }
  if (group.group_lines >= 2) {
    range = {min(range.low, exchange<1>(range.low)), max(range.high, exchange<1>(range.high))};
  }
  if (group.group_lines == 4) {
    range = {min(range.low, exchange<2>(range.low)), max(range.high, exchange<2>(range.high))};
  }
  return range;
}

// kRounder + the code: `position` rounded and limited to 0 .. last. Limits compare bits, which sort
// like the numbers against positive ones.
inline Floats round_code(Floats position, float last) {
  const Ints lowest = bits(splat(kRounder));
  const Ints highest = bits(splat(kRounder + last));
  const Ints rounded = bits(position + kRounder);
  const Ints raised = rounded < lowest ? lowest : rounded;
  return number(raised < highest ? raised : highest);
}

inline void try_symmetric(const Group& group, Floats trial, Best& best) {
  const Floats inverse_scale = inverse(trial);
  const Floats mid = splat(group.mid());
  const float last = group.last();
  Sum product;
  Sum square;
  for (int m = 0; m < group.members; m += 4) {
    for (int p = 0; p < 4; ++p) {
      const Floats value = group.values[m + p];
      const Floats level = round_code(value * inverse_scale + mid, last) - kRounder - mid;
      product.partial[p] += value * level;
      square.partial[p] += level * level;
    }
  }
  const Floats products = product.total(group.group_lines);
  const Floats squares = square.total(group.group_lines);
  const Floats fitted = products / squares;
  const Floats scale = squares > 0.0F ? fitted : Floats{};
  best.take(products * scale, scale, Floats{});
}

inline Fitted fit_symmetric(const Group& group, bool mean_square) {
  const Range range = find_range(group);
  const Floats widest = max(-range.low, range.high) / group.mid();
  if (!mean_square) return {round_to_half(widest), Floats{}};
  const Floats mean = sum_over(group, absolute) / group.count();
  Best best{Floats{}, widest, Floats{}};
  const Candidates candidates = symmetric_candidates(group.levels);
  for (const Candidate* c = candidates.begin; c != candidates.end; ++c) {
    try_symmetric(group, (c->of_mean ? mean : widest) * c->ratio, best);
  }
  try_symmetric(group, best.scale, best);
  return {round_to_half(best.scale), Floats{}};
}

// Of one affine group.
struct Spread {
  Floats middle;
  Floats total;  // of value - middle
};

// group.values are differences from the middle; shift is what the middle code becomes.
inline void try_affine(const Group& group, const Spread& spread, Floats trial, Floats shift,
                       Best& best) {
  const Floats inverse_scale = inverse(trial);
  const float last = group.last();
  const float count = group.count();
  Sum product;
  Sum square;
  Sum sum;
  for (int m = 0; m < group.members; m += 4) {
    for (int p = 0; p < 4; ++p) {
      const Floats value = group.values[m + p];
      const Floats code = round_code(value * inverse_scale + shift, last) - kRounder;
      product.partial[p] += value * code;
      square.partial[p] += code * code;
      sum.partial[p] += code;
    }
  }
  const Floats codes = sum.total(group.group_lines);
  const Floats mean = codes / count;
  const Floats covariance = product.total(group.group_lines) - spread.total * mean;
  const Floats variance = square.total(group.group_lines) - codes * mean;
  const Floats fitted = covariance / variance;
  const Floats rising = covariance > 0.0F ? fitted : Floats{};
  const Floats scale = variance > 0.0F ? rising : Floats{};
  const Floats center = spread.middle + (spread.total / count - scale * (mean - group.mid()));
  best.take(covariance * scale, scale, center);
}

// Scratch: [members], takes the differences from the middle.
inline Fitted fit_affine(const Group& group, bool mean_square, Floats* scratch) {
  const Range range = find_range(group);
  const Floats base = (range.high - range.low) / group.last();
  const Floats middle = (range.high + range.low) * 0.5F;
  if (!mean_square) return {round_to_half(base), round_to_half(middle)};
  for (int m = 0; m < group.members; ++m) scratch[m] = group.values[m] - middle;
  Group centered = group;
  centered.values = scratch;
  const Spread spread{middle, sum_over(centered, [](Floats value) { return value; })};
  Best best{Floats{}, base, middle};
  const Candidates candidates = affine_candidates(group.levels);
  for (const Candidate* c = candidates.begin; c != candidates.end; ++c) {
    try_affine(centered, spread, base * c->ratio, splat(group.mid() - c->offset), best);
  }
  const Floats shift = group.mid() - (best.center - middle) * inverse(best.scale);
  try_affine(centered, spread, best.scale, shift, best);
  return {round_to_half(best.scale), round_to_half(best.center)};
}

}  // namespace
}  // namespace kvq
