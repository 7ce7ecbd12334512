// The fit `hqq` of codec/fit.h.
//
// A round reads the group once where every residual of the warp is small (then the pull is the
// residual itself), twice otherwise.
#pragma once

#include "kvq/codec/cuda/device/least_squares.cuh"

namespace kvq::cuda {

constexpr int kMaxRounds = 20;
constexpr float kPullOfOne = 0.1F;
constexpr float kLeastPowered = 0.125F;  // below it the pull is the residual

__device__ __forceinline__ float power(float x) {
  const int b = __float_as_int(x);
  float r = __int_as_float(0x52920000 - ((b >> 2) + (b >> 5) + (b >> 6) + (b >> 8)));
  const float cube = x * x * x;
#pragma unroll
  for (int step = 0; step < 3; ++step) {
    const float r2 = r * r;
    const float r4 = r2 * r2;
    r = r * (1.1F - 0.1F * (cube * (r4 * r4 * r2)));
  }
  return r;
}

__device__ __forceinline__ float pull_of(float residual) {
  const float magnitude = fabsf(residual);
  const float limit = kPullOfOne * power(fmaxf(magnitude, kLeastPowered));
  return copysignf(fminf(magnitude, limit), residual);
}

struct HalfQuadratic {
  CodeUnits units;
  float middle;
  float scale;          // of a unit
  float inverse_scale;  // likewise
  float shift;

  __device__ __forceinline__ float residual(float value) const {
    const float rest = value - middle - shift;
    return rest - scale * (units.middle - mirrored_code(units, rest * inverse_scale, units.middle));
  }
};

__device__ __forceinline__ Fitted fit_half_quadratic(const PackTensor& tensor, const Group& group) {
  const Range range = find_range(group);
  const float scale = round_to_half((range.high - range.low) / tensor.last_code);
  const float middle = (range.high + range.low) * 0.5F;
  HalfQuadratic step{tensor.units, middle, scale * tensor.units.codes_a_unit,
                     inverse(scale) * tensor.units.unit, 0.0F};
  float least = __int_as_float(0x7f800000);
  bool running = true;
  for (int round = 0; round < kMaxRounds && __any_sync(kAllLanes, running); ++round) {
    float error = 0.0F;
    float pull = 0.0F;
    float widest = 0.0F;
    for_each_member(group, [&](float value) {
      const float residual = step.residual(value);
      error += fabsf(residual);
      pull += residual;
      widest = fmaxf(widest, fabsf(residual));
    });
    if (__any_sync(kAllLanes, widest > kLeastPowered)) {
      pull = 0.0F;
      for_each_member(group, [&](float value) { pull += pull_of(step.residual(value)); });
    }
    pull = total(pull, group);
    error = total(error, group);
    if (running) step.shift += pull / group.members;
    running = running && error < least;
    if (running) least = error;
  }
  return {scale, round_to_half(middle + step.shift)};
}

}  // namespace kvq::cuda
