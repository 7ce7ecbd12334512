// The small operations of a pass on a CUDA device. Numbers are float32 rows in
// device memory.
//
// Matrix products in bf16 take their rows split in two, x = high + low to 16
// significant bits: as many rows again, [high rows; low rows], of a product
// that reads the weights once. Operations whose results are multiplied next
// write the split rows themselves.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "kvq/attention/cuda/decode_params.h"

namespace kvq::cuda {

// Where an operation leaves its rows for the next product,
// [terms][rows][width].
struct SplitRows {
  __nv_bfloat16* data = nullptr;  // null: nowhere
  int terms = 0;                  // 1: high alone, 2
};

// What a product left: its result is the sum of its terms, plus a bias.
struct ProductTerms {
  const float* high = nullptr;  // [rows, width]
  const float* low = nullptr;   // likewise, null for none
  const float* bias = nullptr;  // [width], null for none
};

struct RmsNormCall {
  float* input;        // [rows, width], a multiple of 4
  ProductTerms added;  // high not null: first input += this, or input = this
  bool accumulate;
  const float* weight;  // [width]
  float* output;        // [rows, width]
  SplitRows split;
  float epsilon;
  int rows;
  int width;
  int check;             // goes to `failed` if a row's sum of squares is not finite
  std::int32_t* failed;  // in and out: the lowest such number
};
cudaError_t rms_norm(const RmsNormCall& call, cudaStream_t stream);

struct SplitHeadsCall {
  ProductTerms fused;       // [rows, (query_heads + 2 kv_heads) * head_dim]
  const float* cosine;      // [rows, head_dim / 2]
  const float* sine;        // likewise
  const float* query_norm;  // [head_dim], null for none
  const float* key_norm;    // likewise
  float* query;             // [rows, query_heads, head_dim]
  float* key;               // [rows, kv_heads, head_dim]
  float* value;             // likewise
  float norm_epsilon;
  int rows;
  int query_heads;
  int kv_heads;
  int head_dim;
};
cudaError_t split_heads(const SplitHeadsCall& call, cudaStream_t stream);

struct SiluCall {
  ProductTerms fused;  // [rows, 2 * width]: gate, up
  float* output;       // [rows, width]
  SplitRows split;
  int rows;
  int width;
};
cudaError_t silu_multiply(const SiluCall& call, cudaStream_t stream);

// input: [count], a multiple of 4.
cudaError_t split_rows(const float* input, std::size_t count, SplitRows split, cudaStream_t stream);

// output = product (+ output).
struct FinishProductCall {
  ProductTerms product;  // high null: nothing but a bias
  float* output;         // [rows, width]
  int rows;
  int width;
  bool accumulate;
};
cudaError_t finish_product(const FinishProductCall& call, cudaStream_t stream);

// output[i] = table[rows[i]] as float32.
cudaError_t gather_rows(NumberType type, const void* table, const std::int32_t* rows, int count,
                        int width, float* output, cudaStream_t stream);

// cosine, sine: [count, half], of position * frequency in float32.
cudaError_t rotary_table(const std::int64_t* positions, const float* frequencies, int count,
                         int half, float* cosine, float* sine, cudaStream_t stream);

// failed: as in RmsNormCall.
cudaError_t all_finite(const float* values, std::size_t count, int check, std::int32_t* failed,
                       cudaStream_t stream);

// Numbers of mean 0 and the given deviation, evenly distributed, that `seed`
// decides.
cudaError_t fill_random(NumberType type, void* data, std::size_t count, float deviation,
                        std::uint64_t seed, cudaStream_t stream);

// Index of the first of the largest numbers of each row of values, [rows,
// width].
cudaError_t largest(const float* values, int rows, int width, std::int32_t* index,
                    cudaStream_t stream);

}  // namespace kvq::cuda
