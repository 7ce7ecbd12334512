// The product of a packed block (64 rows x depth) with an operand of up to 8 columns a tile: scores
// S = K q (rows = tokens) and outputs O = V p (rows = channels) are the same function.
//
// Nothing is applied to a single code. With x = scale * (code - middle) + center:
//   row-wise parameters, a vector of scales for every depth group:
//     sum[row] += scale[row] * (codes . b - middle * sum(b)) + center[row] * sum(b)
//   depth-wise parameters, a vector over the depth for every group of rows:
//     sum[row] += codes . (scale * b) - middle * sum(scale * b) + center . b
// where the last two terms are the same for all rows of the group: products with a constant.
//
// Sums are in units of 2^-(unit power + power(tile, r)) (codes.cuh): the codes' own unit for
// depth-wise and row-wise parameters alike. The columns of an operand beyond the first 8 are more
// operands (kColumns), for the same codes.
#pragma once

#include "kvq/attention/cuda/decode_params.h"
#include "kvq/attention/cuda/device/codes.cuh"

namespace kvq::cuda {

inline constexpr std::uint32_t kHalfOnes = 0x3c003c00U;

// Depths of a block, 16 a step; columns in tiles of 8.
template <int kSteps, int kColumns>
struct Operand {
  FragmentB b[kSteps][kColumns];
};

// Rows of a block, 16 a tile.
template <int kColumns>
using BlockSum = FragmentC[4][kColumns];

__device__ __forceinline__ void half_pair_to_floats(std::uint32_t bits, float (&numbers)[2]) {
  const float2 pair = __half22float2(pair_of(bits));
  numbers[0] = pair.x;
  numbers[1] = pair.y;
}

// Row-wise parameters of a lane's rows, [tile][r], from the vector at `address`; one row a group.
__device__ __forceinline__ void load_row_parameters(std::uint32_t address, Lane lane,
                                                    float (&numbers)[4][2]) {
  const uint4 words = load_shared_16(address + 16 * lane.g);
  half_pair_to_floats(words.x, numbers[0]);
  half_pair_to_floats(words.y, numbers[1]);
  half_pair_to_floats(words.z, numbers[2]);
  half_pair_to_floats(words.w, numbers[3]);
}

template <Bits kBits, int kSteps, int kColumns>
__device__ __forceinline__ void add_plain_product(const TensorLayout& layout, std::uint32_t block,
                                                  Lane lane,
                                                  const Operand<kSteps, kColumns>& operand,
                                                  BlockSum<kColumns>& sum) {
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
    if (step >= layout.steps) break;
    FragmentA a[4];
    Codes<kBits>::load(block, step, layout.steps, lane, a);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
#pragma unroll
      for (int c = 0; c < kColumns; ++c) {
        multiply_add(sum[j][c], a[j], operand.b[step][c][0], operand.b[step][c][1]);
      }
    }
  }
}

// One group of 64 rows: group_rows = 64, group_depth = 1, `vectors` in the page, symmetric. What
// all rows lack alike goes to constant, in units of 1.
template <Bits kBits, int kSteps, int kColumns>
__device__ __forceinline__ void add_fixed_depth_wise(const TensorLayout& layout,
                                                     std::uint32_t block, std::uint32_t scales,
                                                     Lane lane,
                                                     const Operand<kSteps, kColumns>& operand,
                                                     BlockSum<kColumns>& sum,
                                                     float (&constant)[kColumns][2]) {
  const std::uint32_t minus_middle = layout.minus_middle;
  const FragmentA middle = {minus_middle, minus_middle, minus_middle, minus_middle};
  FragmentC middles[kColumns] = {};
  uint4 scale = {};
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
    if (step % 2 == 0) {
      scale = load_shared_16(scales + 64 * (step / 2) * layout.row_groups + 16 * lane.t);
    }
    FragmentA a[4];
    Codes<kBits>::load(block, step, kSteps, lane, a);
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
      const std::uint32_t b0 = multiply(operand.b[step][c][0], step % 2 ? scale.y : scale.x);
      const std::uint32_t b1 = multiply(operand.b[step][c][1], step % 2 ? scale.w : scale.z);
#pragma unroll
      for (int j = 0; j < 4; ++j) multiply_add(sum[j][c], a[j], b0, b1);
      multiply_add(middles[c], middle, b0, b1);
    }
  }
#pragma unroll
  for (int c = 0; c < kColumns; ++c) {
    constant[c][0] += middles[c][0];
    constant[c][1] += middles[c][1];
  }
}

// One row a group, 64 depths a group, symmetric. bias[group][c]: -middle * sum of the operand over
// the group's depths, as multiply_add() leaves it.
template <Bits kBits, int kSteps, int kColumns>
__device__ __forceinline__ void add_fixed_row_wise(const TensorLayout& layout, std::uint32_t block,
                                                   std::uint32_t scales, Lane lane,
                                                   const Operand<kSteps, kColumns>& operand,
                                                   const float (&bias)[kSteps / 4][kColumns][2],
                                                   BlockSum<kColumns>& sum) {
  using C = Codes<kBits>;
#pragma unroll
  for (int group = 0; group < kSteps / 4; ++group) {
    BlockSum<kColumns> product;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
#pragma unroll
      for (int c = 0; c < kColumns; ++c) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          product[j][c][e] =
              bias[group][c][e & 1] * power_of_two(C::kUnitPower + C::power(j, e >> 1));
        }
      }
    }
#pragma unroll
    for (int s = 0; s < 4; ++s) {
      const int step = 4 * group + s;
      FragmentA a[4];
      C::load(block, step, kSteps, lane, a);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
#pragma unroll
        for (int c = 0; c < kColumns; ++c) {
          multiply_add(product[j][c], a[j], operand.b[step][c][0], operand.b[step][c][1]);
        }
      }
    }
    float scale[4][2];
    load_row_parameters(scales + 128 * group, lane, scale);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
#pragma unroll
      for (int c = 0; c < kColumns; ++c) {
#pragma unroll
        for (int e = 0; e < 4; ++e) sum[j][c][e] += product[j][c][e] * scale[j][e >> 1];
      }
    }
  }
}

}  // namespace kvq::cuda
