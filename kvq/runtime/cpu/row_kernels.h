// The small operations of a forward pass on one row, vectorized for one instruction set.
#pragma once

#include "kvq/base/cpu.h"
#include "kvq/base/half.h"

namespace kvq {

// What a matrix product leaves: the product itself, or the products of the two terms of the input.
struct ProductRow {
  const float* high;           // [count]
  const float* low = nullptr;  // [count], added to `high`; null where there is one term
};

// Inputs and outputs may be the same row, but must not overlap otherwise.
struct RowKernels {
  // output = input * weight / sqrt(mean(input^2) + epsilon). Returns whether all inputs are finite.
  //   input, weight, output  [count]
  bool (*rms_norm)(const float* input, const float* weight, float epsilon, int count,
                   float* output);

  // Rotates the pairs (i, i + head_dim / 2) of one head.
  //   input, output  [head_dim]
  //   cosine, sine   [head_dim / 2]
  void (*rotate)(const float* input, const float* cosine, const float* sine, int head_dim,
                 float* output);

  // output = silu(gate) * up, silu(x) = x / (1 + exp(-x)); relative error below 1e-6.
  //   gate, up, output  [count]
  void (*silu_multiply)(const float* gate, const float* up, int count, float* output);

  // input = high + low to 16 significant bits: `high` is the input cut off, `low` the rest rounded.
  //   input, high, low  [count]
  void (*split)(const float* input, int count, BFloat16* high, BFloat16* low);

  // output = product (+ bias where not null) (+ output where `accumulate`).
  //   bias, output  [count]
  void (*finish_product)(const ProductRow& product, const float* bias, bool accumulate, int count,
                         float* output);

  // Whether no number of values [count] is infinite or NaN.
  bool (*all_finite)(const float* values, int count);
};

const RowKernels& row_kernels(Isa isa);

// The tables of the instruction sets; use row_kernels().
extern const RowKernels kPortableRowKernels;
extern const RowKernels kAvx2RowKernels;
extern const RowKernels kAvx512RowKernels;

}  // namespace kvq
