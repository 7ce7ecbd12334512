// Choosing scales, centers and codes: the arithmetic of a packed page, defined to the last bit.
//
// Every operation is IEEE 754 binary32 with round to nearest even, subnormals kept; no fused
// multiply-add, no approximate reciprocal. An implementation that does the same operations in the
// same order writes the same bytes, whatever its vectors or threads are.
//
//   line      the members of a group that lie along its axis: the channels of one token (token
//             axis) or the tokens of one channel (channel axis). A group is 1, 2 or 4 adjacent
//             lines of equally many members (a multiple of 16); count = all its members.
//   sum(f)    per line, partial sum p (0 to 3) starts from +0 and adds f(member) for the members p,
//             p + 4, p + 8, .. of the group in this order; the line's is (p0 + p2) + (p1 + p3). Two
//             lines are l0 + l1, four are (l0 + l1) + (l2 + l3).
//   half(x)   x limited to +-65504, then rounded to fp16.
//   inverse(s)  1 / s, but 0 unless s > 0.
//   round(p)  p + 1.5 * 2^23 limited to 1.5 * 2^23 .. that + levels - 1, less 1.5 * 2^23: the
//   nearest
//             code, ties to even.
//   power(x)  x^-0.3 to 2^-19 for x from 1/8 on: r with the bits 0x52920000 - (b / 4 + b / 32 + b /
//   64
//             + b / 256), b = the bits of x and each quotient rounded down, then three times
//             r = r * (1.1 - 0.1 * ((x * x * x) * (r^8 * r^2))) with r^8 = r^4 * r^4, r^4 = r^2 *
//             r^2.
//   mid = (levels - 1) / 2; low, high = least and greatest member.
//
// The code of x is round((x - center) * inverse(scale) + mid) with the fp16 scale and center, which
// are, for symmetric parameters (center = 0):
//   minmax    scale = half(max(-low, high) / mid)
//   mse       widest = max(-low, high) / mid, mean = sum(|x|) / count. For each candidate's ratio
//             (base = mean or widest, as the candidate says), and last with the best scale so far
//             as trial:
//               trial = base * ratio
//               level = round(x * inverse(trial) + mid) - mid
//               product = sum(x * level), square = sum(level * level)
//               scale = product / square (0 if square = 0), the least squares fit to these levels
//               gain = product * scale, what this takes off the squared error
//             The greatest gain wins (the first of equals; scale = widest if none exceeds 0);
//             scale = half(its scale).
// and for affine parameters:
//   minmax    scale = half((high - low) / (levels - 1)), center = half((high + low) * 0.5)
//   mse       base = (high - low) / (levels - 1), middle = (high + low) * 0.5, d = x - middle,
//             total = sum(d). For each candidate's ratio and offset:
//               trial = base * ratio
//               code = round(d * inverse(trial) + (mid - offset))
//               product = sum(d * code), square = sum(code * code), codes = sum(code)
//               mean = codes / count
//               covariance = product - total * mean, variance = square - codes * mean
//               scale = covariance / variance, 0 unless both exceed 0
//               gain = covariance * scale
//               center = middle + (total / count - scale * (mean - mid))
//             and last with trial = the best scale so far and mid - (center - middle) *
//             inverse(trial) for mid - offset. The greatest gain wins (scale = base, center =
//             middle if none exceeds 0); both are rounded by half().
//   hqq       scale and middle as minmax's, scale rounded by half(), d = x - middle, shift = 0,
//             least = infinity. At most 20 times:
//               rest = d - shift
//               residual = rest - scale * (round(rest * inverse(scale) + mid) - mid)
//               error = sum(|residual|)
//               pull = residual limited to +-0.1 * power(max(|residual|, 1/8))
//               shift = shift + sum(pull) / count
//               ends here unless error < least; least = error
//             center = half(middle + shift).
//
// hqq is half-quadratic quantization (Badri and Shaji, 2023) with what the package hqq 0.2.8 does
// by default: |residual|^0.7 is minimized over the zero point by alternating a shrinking step,
// which takes most of a large residual for an outlier, and the mean of the rest. 0.1 = 1 / beta
// does not depend on the scale of the data. docs/accuracy.md lists what differs from that package.
//
// The candidates stand in fit_candidates.inl, with what they lose against an exhaustive search.
#pragma once

#include <cstdint>

namespace kvq {

enum class Isa;

// One tensor of a page to fit and quantize.
struct FitTask {
  const float* values = nullptr;  // [members, lines]: token axis [head_dim, 64 tokens], channel
                                  // axis [64 tokens, head_dim]
  int members = 0;                // all members of a line; members and lines are multiples of 16
  int lines = 0;
  int group_members = 0;  // members of a line that share a scale; the last group may have fewer
  int group_lines = 1;    // adjacent lines that share it: 1, 2 or 4
  int levels = 0;
  bool affine = false;
  bool mean_square = false;         // mse
  bool half_quadratic = false;      // hqq: affine only; neither: minmax
  bool members_are_depths = false;  // else lines are depths and members are rows

  std::uint32_t* words =
      nullptr;               // out: [blocks][depth / 4][64 rows], byte i = code of depth 4T + i
  float* scales = nullptr;   // out: [member groups, lines], fp16 values; the lines of one
  float* centers = nullptr;  // group hold the same number. centers: null if symmetric
};

// One instruction set's kernels. All give the same bits.
struct FitKernels {
  void (*fit)(const FitTask& task);
  // In place, rows [count, head_dim]; block is a power of two that divides head_dim, 16 to 256.
  void (*hadamard)(float* rows, int count, int head_dim, int block);
  // rows [64, head_dim] -> columns [head_dim, 64]
  void (*transpose)(const float* rows, int head_dim, float* columns);
};

const FitKernels& fit_kernels(Isa isa);

}  // namespace kvq
