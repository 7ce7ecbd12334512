// The queries of one item as operands of the matrix instruction.
#pragma once

#include <cuda_bf16.h>

#include "kvq/attention/cuda/device/block_product.cuh"

namespace kvq::cuda {

// Channels 16 step + 4 t .. + 3 of a head whose first channel is element `first`; zeros from head_dim
// on. All loads are on their way before the first is needed.
template <int kSteps>
__device__ __forceinline__ void load_head(const DecodeParams& params, std::int64_t first, Lane lane,
                                          float (&numbers)[kSteps][4]) {
  const auto channel = [&](int step) { return min(16 * step, params.head_dim - 16) + 4 * lane.t; };
  if (params.query_type == NumberType::kFloat32) {
    const float* const head = static_cast<const float*>(params.query) + first;
    float4 words[kSteps];
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      words[step] = __ldg(reinterpret_cast<const float4*>(head + channel(step)));
    }
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      numbers[step][0] = words[step].x, numbers[step][1] = words[step].y;
      numbers[step][2] = words[step].z, numbers[step][3] = words[step].w;
    }
  } else {
    const std::uint16_t* const head = static_cast<const std::uint16_t*>(params.query) + first;
    uint2 words[kSteps];
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      words[step] = __ldg(reinterpret_cast<const uint2*>(head + channel(step)));
    }
    const bool is_half = params.query_type == NumberType::kFloat16;
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      const std::uint32_t pairs[2] = {words[step].x, words[step].y};
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const float2 half = __half22float2(pair_of(pairs[i]));
        numbers[step][2 * i] = is_half ? half.x : __uint_as_float(pairs[i] << 16);
        numbers[step][2 * i + 1] = is_half ? half.y : __uint_as_float(pairs[i] & 0xffff0000U);
      }
    }
  }
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (16 * step >= params.head_dim) numbers[step][i] = 0;
    }
  }
}

// Orthonormal Walsh-Hadamard transform over `length` channels, a power of two: channel
// 16 step + 4 t + i is numbers[step][i] of lane 4g + t.
template <int kSteps>
__device__ __forceinline__ void rotate_query(float (&numbers)[kSteps][4], int length, Lane lane) {
  const auto butterfly = [](float& a, float& b) {
    const float sum = a + b;
    b = a - b;
    a = sum;
  };
  const float factor = rsqrtf(static_cast<float>(length));
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
    float(&x)[4] = numbers[step];
    butterfly(x[0], x[1]), butterfly(x[2], x[3]);
    butterfly(x[0], x[2]), butterfly(x[1], x[3]);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
      for (int distance = 1; distance <= 2; distance *= 2) {
        const float other = __shfl_xor_sync(0xffffffffU, x[i], distance);
        x[i] = (lane.t & distance) ? other - x[i] : x[i] + other;
      }
      x[i] *= factor;
    }
  }
#pragma unroll
  for (int distance = 1; distance < kSteps; distance *= 2) {
    if (16 * distance >= length) break;
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      if (step & distance) continue;
#pragma unroll
      for (int i = 0; i < 4; ++i) butterfly(numbers[step][i], numbers[step + distance][i]);
    }
  }
}

// The heads are divided by a common power of two, so that the greatest number lies between 1/2 and
// 1: products with any fp16 scale stay in range.
template <int kSteps, int kColumns>
struct Query {
  Operand<kSteps, kColumns> operand;
  float factor;  // of the scores, in units of log2; the power of two is in it
};

// first_head: of the item's heads in params.query; heads: how many of 8 * kColumns there are.
// rotation: length of the Hadamard transform, 1 for none.
template <int kSteps, int kColumns>
__device__ __forceinline__ void load_query(const DecodeParams& params, std::int64_t first_head,
                                           int heads, int rotation, Lane lane,
                                           Query<kSteps, kColumns>& query) {
  float numbers[kColumns][kSteps][4];
#pragma unroll
  for (int c = 0; c < kColumns; ++c) {
    const int head = kHeadTile * c + lane.g;
    load_head(params, (first_head + min(head, heads - 1)) * params.head_dim, lane, numbers[c]);
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (head >= heads) numbers[c][step][i] = 0;
      }
    }
  }
  float greatest = 0;
#pragma unroll
  for (int c = 0; c < kColumns; ++c) {
    if (rotation > 1) rotate_query(numbers[c], rotation, lane);
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
#pragma unroll
      for (int i = 0; i < 4; ++i) greatest = fmaxf(greatest, fabsf(numbers[c][step][i]));
    }
  }
  // Numbers >= 0 compare as their bits do.
  const unsigned bits = __reduce_max_sync(0xffffffffU, __float_as_uint(greatest));
  const int exponent = min(max(static_cast<int>(bits >> 23) - 126, -100), 100);
  const float scale = __uint_as_float(static_cast<unsigned>(127 - exponent) << 23);
  query.factor = params.score_scale * __uint_as_float(static_cast<unsigned>(127 + exponent) << 23);
#pragma unroll
  for (int c = 0; c < kColumns; ++c) {
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      const float(&x)[4] = numbers[c][step];
      query.operand.b[step][c][0] = pack(x[0] * scale, x[2] * scale);
      query.operand.b[step][c][1] = pack(x[1] * scale, x[3] * scale);
    }
  }
}

// -middle * sum of the query over each group of 64 channels, as add_fixed_row_wise() takes it.
template <int kSteps, int kColumns>
__device__ __forceinline__ void query_bias(const Operand<kSteps, kColumns>& operand, float middle,
                                           float (&bias)[kSteps / 4][kColumns][2]) {
  const FragmentA ones = {kHalfOnes, kHalfOnes, kHalfOnes, kHalfOnes};
#pragma unroll
  for (int group = 0; group < kSteps / 4; ++group) {
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
      FragmentC total = {};
#pragma unroll
      for (int s = 0; s < 4; ++s) {
        multiply_add(total, ones, operand.b[4 * group + s][c][0], operand.b[4 * group + s][c][1]);
      }
#pragma unroll
      for (int e = 0; e < 2; ++e) bias[group][c][e] = -middle * total[e];
    }
  }
}

}  // namespace kvq::cuda
