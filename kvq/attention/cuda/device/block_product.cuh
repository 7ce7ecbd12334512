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

// The same for groups of 1, 2 or 4 rows.
__device__ __forceinline__ void load_any_row_parameters(std::uint32_t address, int group_rows,
                                                        Lane lane, float (&numbers)[4][2]) {
  if (group_rows == 1) return load_row_parameters(address, lane, numbers);
  const uint2 words = load_shared_8(address + 8 * (group_rows == 2 ? lane.g : lane.g >> 1));
  float pairs[2][2];
  half_pair_to_floats(words.x, pairs[0]);
  half_pair_to_floats(words.y, pairs[1]);
#pragma unroll
  for (int j = 0; j < 4; ++j) numbers[j][0] = numbers[j][1] = pairs[j / 2][j % 2];
}

// Exponent of the unit of row tile `tile`, rows 2g + r: kUnitPower + power() of the width.
__device__ __forceinline__ int unit_exponent(Bits bits, int tile, int r) {
  switch (bits) {
    case Bits::k1:
      return Codes<Bits::k1>::kUnitPower + Codes<Bits::k1>::power(tile, r);
    case Bits::kTernary:
      return Codes<Bits::kTernary>::kUnitPower + Codes<Bits::kTernary>::power(tile, r);
    case Bits::k2:
      return Codes<Bits::k2>::kUnitPower + Codes<Bits::k2>::power(tile, r);
    case Bits::k3:
    case Bits::k4:
      return Codes<Bits::k4>::kUnitPower + Codes<Bits::k4>::power(tile, r);
    case Bits::k5:
    case Bits::k6:
    case Bits::k8:
      return Codes<Bits::k8>::kUnitPower;
    default:
      return 0;
  }
}

// Multiplies with 2^(sign * unit exponent) * factor: sign -1 takes sums to units of 1, 1 takes them
// back.
template <int kColumns>
__device__ __forceinline__ void scale_units(Bits bits, int sign, float factor,
                                            BlockSum<kColumns>& sum) {
#pragma unroll
  for (int j = 0; j < 4; ++j) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const float unit = factor * power_of_two(sign * unit_exponent(bits, j, e >> 1));
#pragma unroll
      for (int c = 0; c < kColumns; ++c) sum[j][c][e] *= unit;
    }
  }
}

// Totals of an operand over kTogether steps, as multiply_add() leaves them.
template <int kTogether, int kSteps, int kColumns>
__device__ __forceinline__ void total_steps(const Operand<kSteps, kColumns>& operand,
                                            float (&totals)[kSteps / kTogether][kColumns][2]) {
  const FragmentA ones = {kHalfOnes, kHalfOnes, kHalfOnes, kHalfOnes};
#pragma unroll
  for (int group = 0; group < kSteps / kTogether; ++group) {
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
      FragmentC total = {};
#pragma unroll
      for (int s = kTogether * group; s < kTogether * (group + 1); ++s) {
        multiply_add(total, ones, operand.b[s][c][0], operand.b[s][c][1]);
      }
      totals[group][c][0] = total[0];
      totals[group][c][1] = total[1];
    }
  }
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

// One group of 64 rows: group_rows = 64, group_depth = 1, kVectors of them in the page, symmetric.
// What all rows lack alike goes to constant, in units of 1.
template <Bits kBits, int kVectors, int kSteps, int kColumns>
__device__ __forceinline__ void add_fixed_depth_wise(std::uint32_t block, std::uint32_t scales,
                                                     Lane lane,
                                                     const Operand<kSteps, kColumns>& operand,
                                                     BlockSum<kColumns>& sum,
                                                     float (&constant)[kColumns][2]) {
  constexpr std::uint32_t kMinusMiddle = minus_middle_pair(kBits);
  const FragmentA middle = {kMinusMiddle, kMinusMiddle, kMinusMiddle, kMinusMiddle};
  FragmentC middles[kColumns] = {};
  uint4 scale = {};
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
    if (step % 2 == 0) {
      scale = load_shared_16(scales + 64 * (step / 2) * kVectors + 16 * lane.t);
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
__device__ __forceinline__ void add_fixed_row_wise(std::uint32_t block, std::uint32_t scales,
                                                   Lane lane,
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

// A group of depths that ends, its product with the codes and the total of its operand, with the
// parameters of the rows to the sums.
template <Bits kBits, int kColumns>
__device__ __forceinline__ void add_row_group(const TensorLayout& layout, int group_rows,
                                              std::uint32_t scales, std::uint32_t centers,
                                              Lane lane, BlockSum<kColumns>& product,
                                              float (&total)[kColumns][2],
                                              BlockSum<kColumns>& sum) {
  using C = Codes<kBits>;
  float scale[4][2];
  float constant[4][2] = {};
  load_any_row_parameters(scales, group_rows, lane, scale);
  if (layout.affine) load_any_row_parameters(centers, group_rows, lane, constant);
#pragma unroll
  for (int j = 0; j < 4; ++j) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      constant[j][r] -= layout.middle * scale[j][r];
#pragma unroll
      for (int c = 0; c < kColumns; ++c) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const float unit_total = total[c][e] * power_of_two(C::kUnitPower + C::power(j, r));
          sum[j][c][2 * r + e] += constant[j][r] * unit_total;
          sum[j][c][2 * r + e] += scale[j][r] * product[j][c][2 * r + e];
          product[j][c][2 * r + e] = 0;
        }
      }
    }
  }
#pragma unroll
  for (int c = 0; c < kColumns; ++c) total[c][0] = total[c][1] = 0;
}

}  // namespace kvq::cuda
