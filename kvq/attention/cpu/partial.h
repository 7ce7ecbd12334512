// Unfinished results of query rows, and how they become output.
#pragma once

#include <cstddef>
#include <span>

#include "kvq/base/cpu.h"

namespace kvq {

// 64-byte aligned memory of floats.
struct alignas(64) FloatLine {
  float values[16];
};
constexpr std::size_t lines_of(std::size_t floats) { return (floats + 15) / 16; }

// Weighted sums of value rows with the state of their softmax, in powers of two: row r stands for
// output[r] / sum[r], with weights 2^(score - maximum[r]).
struct Partial {
  float* maximum = nullptr;  // [rows, rounded up to 16]
  float* sum = nullptr;      // likewise
  float* output = nullptr;   // [rows][padded_channels(head_dim)]

  // Lines that `rows` rows take, and a Partial in so many lines of memory.
  static std::size_t lines(int rows, int head_dim);
  static Partial make(FloatLine* memory, int rows);

  // To the sum over nothing: maximum -infinity, the rest 0.
  void clear(int rows, int head_dim) const;
};

// The results of rows [row, row + count), merged in order and normalized: output [count][head_dim].
// At least one partial holds something of every row.
//   plain    sums in the space of the output
//   rotated  sums in the rotated space (codec/hadamard.h); may be empty
void write_output(std::span<const Partial> plain, std::span<const Partial> rotated, int row,
                  int count, int head_dim, Isa isa, float* output);

}  // namespace kvq
