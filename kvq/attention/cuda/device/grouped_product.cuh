// The product of a packed block with an operand, for parameters of groups of 32 rows or depths or
// more, symmetric or affine: the formats that plans mostly choose. As block_product.cuh, which says
// what is computed; width and axis are known when it is compiled, group and parameters are not.
//
// Depth-wise, the rows of a block have at most two vectors of parameters, for rows 0..31
// and 32..63. A product with a matrix whose rows 2g are one vector and rows 2g+1 the other gives
// what both lack:
//
//   constants = [-middle, 0] (scale_0 * b) + [0, -middle] (scale_1 * b) + [center_0, center_1] b
//
// Row-wise, groups end with a pair of steps (32 depths); the operand's totals over pairs are given.
//
// Cost beyond the codes: depth-wise 15 instructions a step, row-wise 75 for each group of depths.
#pragma once

#include "kvq/attention/cuda/device/block_product.cuh"

namespace kvq::cuda {

// Totals of an operand over pairs of steps.
template <int kSteps, int kColumns>
using PairTotals = float[kSteps / 2][kColumns][2];

// Where parameters of a tensor are read, in the order of groups of one depth (depth-wise) or one
// row (row-wise).
struct Parameters {
  std::uint32_t scales;
  std::uint32_t centers;
  int stride;  // bytes from a piece of 32 depths, or from a group of depths, to the next
};

// Parameters of groups of several depths are spread to `room`, of kSpreadBytes; others stay in the
// page.
inline constexpr int kSpreadBytes = 512;

template <int kPairs>
__device__ __forceinline__ Parameters depth_wise_parameters(const TensorLayout& layout,
                                                            std::uint32_t page, std::uint32_t room,
                                                            Lane lane) {
  if (layout.group_depth == 1) {
    return {page + layout.scales, page + layout.centers, 64 * layout.row_groups};
  }
  // Groups of several depths have 64 rows or more, and all of the page's: one vector.
  static_assert(2 * 64 * kPairs <= kSpreadBytes);
  __syncwarp();
#pragma unroll
  for (int first = 0; first < 8 * kPairs; first += 32) {
    const int i = first + lane.index;
    const int pair = i / 4 % kPairs;
    const int t = i % 4;
    if (i < 8 * kPairs) {
      const std::uint32_t piece = page + (i < 4 * kPairs ? layout.scales : layout.centers) +
                                  64 * (pair >> layout.depth_shift) + 16 * t;
      uint2 words;  // of the even and the odd step
      if (layout.group_depth == 2) {
        words = load_shared_8(piece + 8 * (pair & 1));
      } else {
        const std::uint32_t word = load_shared_4(piece + 4 * (pair & 3));
        words = make_uint2(__byte_perm(word, word, 0x1010), __byte_perm(word, word, 0x3232));
      }
      store_shared_16(room + 16 * i, make_uint4(words.x, words.y, words.x, words.y));
    }
  }
  __syncwarp();
  return {room, room + 64 * kPairs, 64};
}

// vectors: of the page, at most 2.
__device__ __forceinline__ Parameters row_wise_parameters(const TensorLayout& layout,
                                                          std::uint32_t page, std::uint32_t room,
                                                          int vectors, Lane lane) {
  if (layout.group_rows == 1) return {page + layout.scales, page + layout.centers, 128};
  __syncwarp();
  const int vector = lane.index / 8 % 2;
  const int g = lane.index % 8;
  if (vector < vectors) {
    const bool scale = lane.index < 16;
    const uint2 words = load_shared_8(page + (scale ? layout.scales : layout.centers) +
                                      (2 * kPageTokens >> layout.row_shift) * vector +
                                      8 * (layout.group_rows == 2 ? g : g >> 1));
    store_shared_16(room + 16 * lane.index,
                    make_uint4(__byte_perm(words.x, 0, 0x1010), __byte_perm(words.x, 0, 0x3232),
                               __byte_perm(words.y, 0, 0x1010), __byte_perm(words.y, 0, 0x3232)));
  }
  __syncwarp();
  return {room, room + 256, 128};
}

// group_rows of 32 or more. first_row: of the block.
template <Bits kBits, int kSteps, int kColumns>
__device__ __forceinline__ void add_grouped_depth_wise(
    const TensorLayout& layout, const Parameters& parameters, std::uint32_t block, int first_row,
    Lane lane, const Operand<kSteps, kColumns>& operand, BlockSum<kColumns>& sum) {
  using C = Codes<kBits>;
  const std::uint32_t minus_middle = layout.minus_middle;
  const FragmentA middle[2] = {{minus_middle, 0, minus_middle, 0},
                               {0, minus_middle, 0, minus_middle}};
  int vectors[2];
#pragma unroll
  for (int n = 0; n < 2; ++n) {
    vectors[n] = 64 * ((first_row + 32 * n) >> layout.row_shift) + 16 * lane.t;
  }
  FragmentC constants[kColumns] = {};
  if (layout.affine) {
#pragma unroll
    for (int pair = 0; pair < kSteps / 2; ++pair) {
      uint4 center[2];
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        center[n] = load_shared_16(parameters.centers + vectors[n] + pair * parameters.stride);
      }
      const FragmentA even = {center[0].x, center[1].x, center[0].z, center[1].z};
      const FragmentA odd = {center[0].y, center[1].y, center[0].w, center[1].w};
#pragma unroll
      for (int c = 0; c < kColumns; ++c) {
        const FragmentB& b = operand.b[2 * pair][c];
        const FragmentB& next = operand.b[2 * pair + 1][c];
        multiply_add(constants[c], even, b[0], b[1]);
        multiply_add(constants[c], odd, next[0], next[1]);
      }
    }
  }
#pragma unroll
  for (int pair = 0; pair < kSteps / 2; ++pair) {
    uint4 scale[2];
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      scale[n] = load_shared_16(parameters.scales + vectors[n] + pair * parameters.stride);
    }
#pragma unroll
    for (int s = 0; s < 2; ++s) {
      FragmentA a[4];
      C::load(block, 2 * pair + s, kSteps, lane, a);
#pragma unroll
      for (int c = 0; c < kColumns; ++c) {
        const FragmentB& b = operand.b[2 * pair + s][c];
#pragma unroll
        for (int n = 0; n < 2; ++n) {
          const std::uint32_t b0 = multiply(b[0], s == 0 ? scale[n].x : scale[n].y);
          const std::uint32_t b1 = multiply(b[1], s == 0 ? scale[n].z : scale[n].w);
          multiply_add(sum[2 * n][c], a[2 * n], b0, b1);
          multiply_add(sum[2 * n + 1][c], a[2 * n + 1], b0, b1);
          multiply_add(constants[c], middle[n], b0, b1);
        }
      }
    }
  }
#pragma unroll
  for (int j = 0; j < 4; ++j) {
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        sum[j][c][e] +=
            constants[c][2 * (j / 2) + e % 2] * power_of_two(C::kUnitPower + C::power(j, e / 2));
      }
    }
  }
}

// group_depth of 32 or more. before: groups of depths of the blocks before.
template <Bits kBits, int kSteps, int kColumns>
__device__ __forceinline__ void add_grouped_row_wise(const TensorLayout& layout,
                                                     const Parameters& parameters,
                                                     std::uint32_t block, int before, Lane lane,
                                                     const Operand<kSteps, kColumns>& operand,
                                                     const PairTotals<kSteps, kColumns>& totals,
                                                     BlockSum<kColumns>& sum) {
  int vector = before * parameters.stride;
  BlockSum<kColumns> product = {};
  float total[kColumns][2] = {};
#pragma unroll
  for (int pair = 0; pair < kSteps / 2; ++pair) {
#pragma unroll
    for (int step = 2 * pair; step < 2 * pair + 2; ++step) {
      FragmentA a[4];
      Codes<kBits>::load(block, step, kSteps, lane, a);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
#pragma unroll
        for (int c = 0; c < kColumns; ++c) {
          multiply_add(product[j][c], a[j], operand.b[step][c][0], operand.b[step][c][1]);
        }
      }
    }
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
      total[c][0] += totals[pair][c][0];
      total[c][1] += totals[pair][c][1];
    }
    const bool group_ends = (32 * (pair + 1) & (layout.group_depth - 1)) == 0;
    if (pair + 1 == kSteps / 2 || group_ends) {
      add_row_group<kBits>(layout, 1, parameters.scales + vector, parameters.centers + vector, lane,
                           product, total, sum);
      vector += parameters.stride;
    }
  }
}

}  // namespace kvq::cuda
