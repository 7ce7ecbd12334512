// The Walsh-Hadamard transform of rows that lie in registers as products leave them.
#pragma once

#include "kvq/attention/cuda/device/prefill_product.cuh"

namespace kvq::cuda {

__device__ __forceinline__ void butterfly(float& low, float& high) {
  const float sum = low + high;
  high = low - high;
  low = sum;
}

// Orthonormal, over `length` channels, 16 or more; channel 64 block + 8 n + 2 t + e is
// x[block][4 n + e] (row g) or x[block][4 n + 2 + e] (row g + 8).
template <int kBlocks>
__device__ __forceinline__ void rotate_rows(BlockC (&x)[kBlocks], int length, Lane lane) {
  const float factor = rsqrtf(static_cast<float>(length));
#pragma unroll
  for (int block = 0; block < kBlocks; ++block) {
#pragma unroll
    for (int i = 0; i < 32; i += 2) butterfly(x[block][i], x[block][i + 1]);
#pragma unroll
    for (int distance = 1; distance <= 2; distance *= 2) {
#pragma unroll
      for (int i = 0; i < 32; ++i) {
        const float other = __shfl_xor_sync(0xffffffffU, x[block][i], distance);
        x[block][i] = (lane.t & distance) ? other - x[block][i] : x[block][i] + other;
      }
    }
#pragma unroll
    for (int distance = 4; distance < 32; distance *= 2) {
      if (2 * distance >= length) break;
#pragma unroll
      for (int i = 0; i < 32; ++i) {
        if ((i & distance) == 0) butterfly(x[block][i], x[block][i + distance]);
      }
    }
  }
#pragma unroll
  for (int distance = 1; distance < kBlocks; distance *= 2) {
    if (64 * distance >= length) break;
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) {
      if (block & distance) continue;
#pragma unroll
      for (int i = 0; i < 32; ++i) butterfly(x[block][i], x[block + distance][i]);
    }
  }
#pragma unroll
  for (int block = 0; block < kBlocks; ++block) {
#pragma unroll
    for (int i = 0; i < 32; ++i) x[block][i] *= factor;
  }
}

}  // namespace kvq::cuda
