// Four lanes for each line of a group: lane p holds partial sum p of codec/fit.h, so that sums are
// added in the order defined there.
//
//   lane 4l + p of a warp: line l of 8 adjacent lines, members p, p + 4, p + 8, ..
//
// A group is one line, or 2 or 4 adjacent ones. Sums over a group come out the same in all lanes of
// its first line; in lanes of the others up to the sign of zero.
#pragma once

#include "kvq/codec/cuda/device/rows.cuh"

namespace kvq::cuda {

constexpr int kTeam = 4;  // lanes of a line
constexpr int kWarpLines = 32 / kTeam;

// What one lane sees of a group. Values are in shared memory.
struct Group {
  const float* values;  // this lane's first member
  int stride;           // floats from one of its members to the next
  int count;            // its members, a multiple of 4
  int lines;            // of the group
  float members;        // of the group, all lines
  const float* first;   // first member of the first line
  const float* last;    // last member of the last line
};

template <class Function>
__device__ __forceinline__ void for_each_member(const Group& group, Function function) {
  const float* at = group.values;
  for (int k = 0; k < group.count; k += 4) {
    float values[4];
#pragma unroll
    for (float& value : values) {
      value = *at;
      at += group.stride;
    }
#pragma unroll
    for (const float value : values) function(value);
  }
}

__device__ __forceinline__ float other(float value, int distance) {
  return __shfl_xor_sync(kAllLanes, value, distance);
}

// sum: of the lane's own line.
__device__ __forceinline__ float total_of_lines(float sum, int lines) {
  if (lines == 1) return sum;
  sum += other(sum, kTeam);
  return lines == 2 ? sum : sum + other(sum, 2 * kTeam);
}

__device__ __forceinline__ float total(float partial, const Group& group) {
  partial += other(partial, 2);
  partial += other(partial, 1);
  return total_of_lines(partial, group.lines);
}

// Four sums at once: lane p gets the total of partial[p].
__device__ __forceinline__ float total_of_own(const float (&partial)[kTeam], int p,
                                              const Group& group) {
  const bool upper = (p & 2) != 0;
  const float even = (upper ? partial[2] : partial[0]) + other(upper ? partial[0] : partial[2], 2);
  const float odd = (upper ? partial[3] : partial[1]) + other(upper ? partial[1] : partial[3], 2);
  const bool is_odd = (p & 1) != 0;
  return total_of_lines((is_odd ? odd : even) + other(is_odd ? even : odd, 1), group.lines);
}

// The greatest of what the lanes of a group have seen.
__device__ __forceinline__ float greatest(float seen, const Group& group) {
  seen = fmaxf(seen, other(seen, 1));
  seen = fmaxf(seen, other(seen, 2));
  if (group.lines == 1) return seen;
  seen = fmaxf(seen, other(seen, kTeam));
  return group.lines == 2 ? seen : fmaxf(seen, other(seen, 2 * kTeam));
}

struct Range {
  float low;
  float high;
};

// Where all members are zeros, their signs decide those of the results: by the comparisons
// `low < x ? low : x` and `high < x ? x : high`, member after member, the last one is the least and
// the first one the greatest.
__device__ __forceinline__ Range find_range(const Group& group) {
  float minus_low = -*group.values;
  float high = *group.values;
  for_each_member(group, [&](float value) {
    minus_low = fmaxf(minus_low, -value);
    high = fmaxf(high, value);
  });
  const Range range{-greatest(minus_low, group), greatest(high, group)};
  if (range.low == 0.0F && range.high == 0.0F) return {*group.last, *group.first};
  return range;
}

__device__ __forceinline__ float inverse(float scale) {
  return scale > 0.0F ? __frcp_rn(scale) : 0.0F;
}

// Limited to fp16's range, rounded to fp16, kept in binary32.
__device__ __forceinline__ float round_to_half(float value) {
  return __half2float(__float2half_rn(fminf(fmaxf(value, -65504.0F), 65504.0F)));
}

// levels - 1 less the code at `position`, both in units: codes below 0 are limited by the first
// saturation, codes above levels - 1 by the second.
__device__ __forceinline__ float mirrored_code(const CodeUnits& units, float scaled, float shift) {
  const float position = __saturatef(scaled + shift);
  return __saturatef(units.top - (position + units.rounder));
}

}  // namespace kvq::cuda
