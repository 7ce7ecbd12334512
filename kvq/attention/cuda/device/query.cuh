// The queries of one item as operands of the matrix instruction.
#pragma once

#include <cuda_bf16.h>

#include "kvq/attention/cuda/device/block_product.cuh"

namespace kvq::cuda {

// The queries of an item as they lie in memory: heads g of each tile, four channels a step.
template <int kSteps, int kColumns>
struct RawQuery {
  uint4 words[kColumns][kSteps];  // 16-bit numbers: x and y alone
};

// Starts the loads; heads beyond the last are copies of it, channels beyond head_dim of others.
template <int kSteps, int kColumns>
__device__ __forceinline__ void load_raw_query(const DecodeParams& params, std::int64_t first_head,
                                               int heads, Lane lane,
                                               RawQuery<kSteps, kColumns>& raw) {
  const bool wide = params.query_type == NumberType::kFloat32;
#pragma unroll
  for (int c = 0; c < kColumns; ++c) {
    const int head = min(kHeadTile * c + lane.g, heads - 1);
    const std::int64_t row = (first_head + head) * params.head_dim;
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      const std::int64_t index = row + min(16 * step, params.head_dim - 16) + 4 * lane.t;
      // Here, not where the numbers are needed.
      if (wide) {
        const float* const at = static_cast<const float*>(params.query) + index;
        uint4& w = raw.words[c][step];
        asm volatile("ld.global.nc.v4.u32 {%0,%1,%2,%3}, [%4];"
                     : "=r"(w.x), "=r"(w.y), "=r"(w.z), "=r"(w.w)
                     : "l"(at));
      } else {
        const std::uint16_t* const at = static_cast<const std::uint16_t*>(params.query) + index;
        uint4& w = raw.words[c][step];
        asm volatile("ld.global.nc.v2.u32 {%0,%1}, [%2];" : "=r"(w.x), "=r"(w.y) : "l"(at));
        w.z = w.w = 0;
      }
    }
  }
}

template <NumberType kType>
__device__ __forceinline__ void convert_four(const uint4& words, float (&numbers)[4]) {
  if constexpr (kType == NumberType::kFloat32) {
    numbers[0] = __uint_as_float(words.x), numbers[1] = __uint_as_float(words.y);
    numbers[2] = __uint_as_float(words.z), numbers[3] = __uint_as_float(words.w);
  } else {
    const std::uint32_t pairs[2] = {words.x, words.y};
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float2 half = __half22float2(pair_of(pairs[i]));
      constexpr bool kHalf = kType == NumberType::kFloat16;
      numbers[2 * i] = kHalf ? half.x : __uint_as_float(pairs[i] << 16);
      numbers[2 * i + 1] = kHalf ? half.y : __uint_as_float(pairs[i] & 0xffff0000U);
    }
  }
}
template <NumberType kType, int kSteps, int kColumns>
__device__ __forceinline__ void convert(const RawQuery<kSteps, kColumns>& raw,
                                        float (&numbers)[kColumns][kSteps][4]) {
#pragma unroll
  for (int c = 0; c < kColumns; ++c) {
#pragma unroll
    for (int step = 0; step < kSteps; ++step)
      convert_four<kType>(raw.words[c][step], numbers[c][step]);
  }
}

template <int kSteps, int kColumns>
struct Query {
  Operand<kSteps, kColumns> operand;
  float factor;  // of the scores, in units of log2; what the operand was divided by is in it
};

// The operand [channels x 8 heads] times the Walsh-Hadamard matrix of `length` (a power of two, 16
// or more) times `scale`: inside a step of 16 channels a product with the matrix of 16, whose
// elements are +-1, between steps butterflies.
template <int kSteps>
__device__ __forceinline__ void rotate_operand(Operand<kSteps, 1>& operand, int length, float scale,
                                               Lane lane) {
  // Element (row, depth) is -1 to the number of common bits; fp16 1 with or without its sign.
  const auto sign = [](int row, int depth) {
    return static_cast<std::uint32_t>(__popc(row & depth) & 1) << 15;
  };
  FragmentA matrix;
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    const int row = 2 * lane.g + k % 2;
    const int depth = 4 * lane.t + k / 2;
    matrix[k] = kHalfOnes ^ (sign(row, depth) | sign(row, depth + 2) << 16);
  }
  FragmentC channels[kSteps];  // rows 2g, 2g + 1 of each step
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
#pragma unroll
    for (int e = 0; e < 4; ++e) channels[step][e] = 0;
    multiply_add(channels[step], matrix, operand.b[step][0][0], operand.b[step][0][1]);
  }
#pragma unroll
  for (int distance = 1; distance < kSteps; distance *= 2) {
    if (16 * distance >= length) break;
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      if (step & distance) continue;
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const float sum = channels[step][e] + channels[step + distance][e];
        channels[step + distance][e] = channels[step][e] - channels[step + distance][e];
        channels[step][e] = sum;
      }
    }
  }
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
    const FragmentC& x = channels[step];
    operand.b[step][0][0] = transpose(pack(x[0] * scale, x[1] * scale));
    operand.b[step][0][1] = transpose(pack(x[2] * scale, x[3] * scale));
  }
}

// The power of two above the greatest number of all lanes: exponent of a factor between 1/2 and 1.
template <int kColumns, int kSteps>
__device__ __forceinline__ int common_exponent(const float (&numbers)[kColumns][kSteps][4]) {
  float greatest = 0;
#pragma unroll
  for (int c = 0; c < kColumns; ++c) {
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
#pragma unroll
      for (int i = 0; i < 4; ++i) greatest = fmaxf(greatest, fabsf(numbers[c][step][i]));
    }
  }
  // Numbers >= 0 compare as their bits do.
  const unsigned bits = __reduce_max_sync(0xffffffffU, __float_as_uint(greatest));
  return min(max(static_cast<int>(bits >> 23) - 126, -100), 100);
}

// The operand is divided by a power of two, so that no number exceeds 1: products with any fp16
// scale stay in range.
template <int kSteps, int kColumns>
__device__ __forceinline__ void prepare_query(const DecodeParams& params,
                                              const RawQuery<kSteps, kColumns>& raw,
                                              Query<kSteps, kColumns>& query) {
  float numbers[kColumns][kSteps][4];
  if (params.query_type == NumberType::kBFloat16) {
    convert<NumberType::kBFloat16>(raw, numbers);
  } else if (params.query_type == NumberType::kFloat16) {
    convert<NumberType::kFloat16>(raw, numbers);
  } else {
    convert<NumberType::kFloat32>(raw, numbers);
  }
  if (params.head_dim < 16 * kSteps) {
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
#pragma unroll
      for (int step = 0; step < kSteps; ++step) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          if (16 * step >= params.head_dim) numbers[c][step][i] = 0;
        }
      }
    }
  }
  const int exponent = common_exponent(numbers);
  const float scale = power_of_two(-exponent);
  query.factor = params.score_scale * power_of_two(exponent);
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

// To the rotated space of the keys; numbers still do not exceed 1.
// length: of the Hadamard transform, a power of two, 1 for none.
template <int kSteps, int kColumns>
__device__ __forceinline__ void rotate_query(Query<kSteps, kColumns>& query, int length,
                                             Lane lane) {
  if (length == 1) return;
  const int power = 31 - __clz(length);
  query.factor *= exp2_fast(0.5F * static_cast<float>(power));
#pragma unroll
  for (int c = 0; c < kColumns; ++c) {
    Operand<kSteps, 1> column;
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
#pragma unroll
      for (int i = 0; i < 2; ++i) column.b[step][0][i] = query.operand.b[step][c][i];
    }
    rotate_operand(column, length, power_of_two(-power), lane);
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
#pragma unroll
      for (int i = 0; i < 2; ++i) query.operand.b[step][c][i] = column.b[step][0][i];
    }
  }
}

// -middle * sum of the query over each group of 64 channels, as add_fixed_row_wise() takes it.
template <int kSteps, int kColumns>
__device__ __forceinline__ void query_bias(const Operand<kSteps, kColumns>& operand, float middle,
                                           float (&bias)[kSteps / 4][kColumns][2]) {
  total_steps<4>(operand, bias);
#pragma unroll
  for (int group = 0; group < kSteps / 4; ++group) {
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
      bias[group][c][0] *= -middle;
      bias[group][c][1] *= -middle;
    }
  }
}

}  // namespace kvq::cuda
