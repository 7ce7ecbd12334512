// Matrix products of a few rows, as decode steps of few sequences have them.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime_api.h>

namespace kvq::cuda {

// Rows times terms of a product.
inline constexpr int kFewRowsColumns = 8;

// output = weights input + bias (+ output), summed in float32.
struct FewRowsCall {
  const __nv_bfloat16* weights;  // [outputs, inputs]
  const float* input;            // [rows, inputs]
  const float* bias;             // [outputs], null for none
  float* output;                 // [rows, outputs]
  int rows;
  int terms;  // bf16 terms that the input is split in: 1, 2 (row_kernels.h)
  int inputs;
  int outputs;
  bool accumulate;
};

// Whether the kernel is the one for products of this shape; for any number of outputs that it
// takes.
bool suits_few_rows(int rows, int terms, int inputs, int outputs);
bool suits_few_rows(int rows, int terms, int inputs);

cudaError_t multiply_few_rows(const FewRowsCall& call, cudaStream_t stream);

}  // namespace kvq::cuda
