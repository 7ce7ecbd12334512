// fp16 rows in memory to rotated binary32 rows in shared memory.
//
// Rows are taken as one sequence of numbers, eight a lane and 256 a warp: no Hadamard transform is
// longer, and each starts at a multiple of its length. Butterflies of stride 1, 2 and 4 stay in the
// lane, those of stride 8 to 128 cross lanes.
#pragma once

#include <cuda_fp16.h>

#include "kvq/codec/cuda/pack_params.h"

namespace kvq::cuda {

constexpr unsigned kAllLanes = 0xffffffffU;
constexpr int kLaneNumbers = 8;

__device__ __forceinline__ void to_floats(const uint4& halves, float (&x)[kLaneNumbers]) {
  const unsigned words[4] = {halves.x, halves.y, halves.z, halves.w};
#pragma unroll
  for (int i = 0; i < kLaneNumbers; ++i) {
    const unsigned short bits = static_cast<unsigned short>(words[i / 2] >> (16 * (i % 2)));
    x[i] = __half2float(__ushort_as_half(bits));
  }
}

// codec/hadamard.h; the order of additions is part of the result.
__device__ __forceinline__ void rotate(float (&x)[kLaneNumbers], int length, float scale,
                                       int lane) {
#pragma unroll
  for (int stride = 1; stride < kLaneNumbers; stride *= 2) {
#pragma unroll
    for (int i = 0; i < kLaneNumbers; ++i) {
      if ((i & stride) != 0) continue;
      const float low = x[i];
      const float high = x[i + stride];
      x[i] = low + high;
      x[i + stride] = low - high;
    }
  }
  for (int distance = 1; distance < length / kLaneNumbers; distance *= 2) {
    const float sign = (lane & distance) != 0 ? -1.0F : 1.0F;
#pragma unroll
    for (float& number : x) {
      // The product is exact: one rounding, as in a sum or a difference.
      number = __fmaf_rn(number, sign, __shfl_xor_sync(kAllLanes, number, distance));
    }
  }
#pragma unroll
  for (float& number : x) number *= scale;
}

// rows: fp16 [64 tokens, head_dim], tokens row_token_stride apart
// values: out, [64 tokens][token_stride]
__device__ __forceinline__ void load_rows(const PackParams& params, const PackTensor& tensor,
                                          const std::uint16_t* rows, float* values) {
  const int thread = static_cast<int>(threadIdx.x);
  const float tokens_a_chunk =
      static_cast<float>(kLaneNumbers) / static_cast<float>(params.head_dim);
  // A multiple of 32: all lanes of a warp leave the loop together.
  const int chunks = kPageTokens * params.head_dim / kLaneNumbers;
  for (int chunk = thread; chunk < chunks; chunk += static_cast<int>(blockDim.x)) {
    const int token = static_cast<int>((static_cast<float>(chunk) + 0.5F) * tokens_a_chunk);
    const int channel = kLaneNumbers * chunk - token * params.head_dim;
    float x[kLaneNumbers];
    to_floats(*reinterpret_cast<const uint4*>(rows + token * params.row_token_stride + channel), x);
    if (tensor.rotation > 1) rotate(x, tensor.rotation, tensor.rotation_scale, thread % 32);
    auto* to = reinterpret_cast<float4*>(values + token * tensor.token_stride + channel);
    to[0] = make_float4(x[0], x[1], x[2], x[3]);
    to[1] = make_float4(x[4], x[5], x[6], x[7]);
  }
}

}  // namespace kvq::cuda
