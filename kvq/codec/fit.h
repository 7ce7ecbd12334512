// Choosing scales, centers and codes: the arithmetic of a packed page, defined to the last bit.
//
// Everything is IEEE 754 binary32, round to nearest even, subnormals kept, no fused multiply-add,
// no approximate reciprocals. An implementation that follows the steps below writes the same bytes.
//
//   line     = the members of a group that lie along its axis: the channels of one token (token
//              axis) or the tokens of one channel (channel axis). A group is 1, 2 or 4 adjacent
//              lines of equally many members; members are numbered from 0 inside the group's line.
//   sum(f)   = four partial sums a line, partial p adds f(member) for members p, p + 4, p + 8, ...
//              in rising order, starting from +0; the line is (p0 + p2) + (p1 + p3); 2 lines are
//              l0 + l1, 4 lines are (l0 + l1) + (l2 + l3).
//   half(x)  = x limited to [-65504, 65504], then rounded to fp16 (ties to even, subnormals kept).
//   code(x)  = round(min(max((x - center) * (1 / scale) + mid, 0), levels - 1)), ties to even, with
//              1 / scale replaced by 0 where scale = 0.
#pragma once

#include <cstdint>

namespace kvq {

enum class Isa;

// One tensor of a page to fit and quantize.
struct FitTask {
  const float* values = nullptr;  // [members, lines]: token axis [head_dim, 64 tokens], channel
                                  // axis [64 tokens, head_dim]
  int members = 0;                // multiples of 16
  int lines = 0;
  int group_members = 0;  // members of a line that share a scale; the last group may have fewer
  int group_lines = 1;    // adjacent lines that share it: 1, 2 or 4
  int levels = 0;
  bool affine = false;
  bool mean_square = false;
  bool members_are_depths = false;  // else lines are depths and members are rows

  std::uint32_t* words =
      nullptr;               // out: [blocks][depth / 4][64 rows], byte i = code of depth 4T + i
  float* scales = nullptr;   // out: [member groups, lines], fp16 values; the lines of one
  float* centers = nullptr;  // group hold the same number. centers: null if symmetric
};

// One instruction set's kernels. All give the same bits.
struct FitKernels {
  void (*fit)(const FitTask& task);
  // In place, rows [count, head_dim]; block is a power of two that divides head_dim, >= 16.
  void (*hadamard)(float* rows, int count, int head_dim, int block);
  // rows [64, head_dim] -> columns [head_dim, 64]
  void (*transpose)(const float* rows, int head_dim, float* columns);
};

const FitKernels& fit_kernels(Isa isa);

}  // namespace kvq
