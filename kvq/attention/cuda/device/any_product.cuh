// The product of a packed block with an operand, for any axis, group and parameters; the width is
// known when it is compiled. As block_product.cuh, which says what is computed. Loops go over pairs
// of steps and are not unrolled further, so that the code of all widths stays small; a pair is what
// one 16-byte load of parameters serves.
//
// Operands lie in shared memory, 16 bytes a lane: [pair of steps][column tile][lane]{b[0], b[1] of
// the even step, b[0], b[1] of the odd step}.
//
// Cost of a pair beyond its codes: 3 loads and 12 instructions depth-wise with 64 rows a group,
// about 75 instructions for each group of depths row-wise.
#pragma once

#include "kvq/attention/cuda/device/block_product.cuh"

namespace kvq::cuda {

// Depth-wise parameters of vector `n` of a lane's depths of a pair of steps, in the order of an
// operand: those of b[0] of the even and the odd step, then those of b[1].
__device__ __forceinline__ uint4 load_depth_parameters(std::uint32_t section,
                                                       const TensorLayout& layout, int n, int pair,
                                                       Lane lane) {
  const int piece = pair >> layout.depth_shift;  // of group_depth pairs, 64 bytes
  const std::uint32_t run = section + 64 * (piece * layout.row_groups + n) + 16 * lane.t;
  if (layout.group_depth == 1) return load_shared_16(run);
  const int x = pair - (piece << layout.depth_shift);
  if (layout.group_depth == 2) {
    const uint2 words = load_shared_8(run + 8 * x);
    return make_uint4(words.x, words.y, words.x, words.y);
  }
  const std::uint32_t word = load_shared_4(run + 4 * x);
  const std::uint32_t even = __byte_perm(word, word, 0x1010);
  const std::uint32_t odd = __byte_perm(word, word, 0x3232);
  return make_uint4(even, odd, even, odd);
}

template <int kSteps, int kColumns>
__device__ __forceinline__ void store_operand(const Operand<kSteps, kColumns>& operand,
                                              std::uint32_t operands, Lane lane) {
#pragma unroll
  for (int pair = 0; pair < kSteps / 2; ++pair) {
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
      const FragmentB& even = operand.b[2 * pair][c];
      const FragmentB& odd = operand.b[2 * pair + 1][c];
      store_shared_16(operands + 512 * (kColumns * pair + c) + 16 * lane.index,
                      make_uint4(even[0], even[1], odd[0], odd[1]));
    }
  }
  __syncwarp();
}
// b[0], b[1] of one step.
template <int kColumns>
__device__ __forceinline__ uint2 load_operand_step(std::uint32_t operands, int step, int column,
                                                   Lane lane) {
  return load_shared_8(operands + 512 * (kColumns * (step >> 1) + column) + 16 * lane.index +
                       8 * (step & 1));
}
// Both steps of a pair.
template <int kColumns>
__device__ __forceinline__ void load_operand(std::uint32_t operands, int pair, Lane lane,
                                             Operand<2, kColumns>& operand) {
#pragma unroll
  for (int c = 0; c < kColumns; ++c) {
    const uint4 words = load_shared_16(operands + 512 * (kColumns * pair + c) + 16 * lane.index);
    operand.b[0][c][0] = words.x, operand.b[0][c][1] = words.y;
    operand.b[1][c][0] = words.z, operand.b[1][c][1] = words.w;
  }
}

// Groups of 64 rows (kWhole), or of 32 or 16. What all rows of a group lack alike is added in the
// end.
template <Bits kBits, bool kWhole, int kColumns>
__device__ __forceinline__ void add_any_depth_wise(const TensorLayout& layout, std::uint32_t block,
                                                   std::uint32_t scales, std::uint32_t centers,
                                                   int first_row, Lane lane, std::uint32_t operands,
                                                   BlockSum<kColumns>& sum) {
  using C = Codes<kBits>;
  constexpr int kGroups = kWhole ? 1 : 4;  // of 32 rows: the odd ones are those before them
  const bool pairs_of_tiles = !kWhole && layout.group_rows == 32;
  const std::uint32_t minus_middle = layout.minus_middle;
  const FragmentA middle = {minus_middle, minus_middle, minus_middle, minus_middle};
  FragmentC constant[kGroups][kColumns] = {};
#pragma unroll 1
  for (int pair = 0; 2 * pair < layout.steps; ++pair) {
    Operand<2, kColumns> operand;
    load_operand(operands, pair, lane, operand);
    uint4 scale[kGroups];
#pragma unroll
    for (int n = 0; n < kGroups; ++n) {
      if (n % 2 == 1 && pairs_of_tiles) continue;
      const int group = (first_row + 16 * n) >> layout.row_shift;
      scale[n] = load_depth_parameters(scales, layout, group, pair, lane);
      if (!layout.affine) continue;
      const uint4 center = load_depth_parameters(centers, layout, group, pair, lane);
      const FragmentA even = {center.x, center.x, center.z, center.z};
      const FragmentA odd = {center.y, center.y, center.w, center.w};
#pragma unroll
      for (int c = 0; c < kColumns; ++c) {
        multiply_add(constant[n][c], even, operand.b[0][c][0], operand.b[0][c][1]);
        multiply_add(constant[n][c], odd, operand.b[1][c][0], operand.b[1][c][1]);
      }
    }
#pragma unroll
    for (int s = 0; s < 2; ++s) {
      if (s == 1 && 2 * pair + 1 == layout.steps) break;
      FragmentA a[4];
      C::load(block, 2 * pair + s, layout.steps, lane, a);
      FragmentB b[kColumns];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int n = j < kGroups ? j : 0;
        if (j == n && !(n % 2 == 1 && pairs_of_tiles)) {
#pragma unroll
          for (int c = 0; c < kColumns; ++c) {
            b[c][0] = multiply(operand.b[s][c][0], s == 0 ? scale[n].x : scale[n].y);
            b[c][1] = multiply(operand.b[s][c][1], s == 0 ? scale[n].z : scale[n].w);
            multiply_add(constant[n][c], middle, b[c][0], b[c][1]);
          }
        }
#pragma unroll
        for (int c = 0; c < kColumns; ++c) multiply_add(sum[j][c], a[j], b[c][0], b[c][1]);
      }
    }
  }
#pragma unroll
  for (int j = 0; j < 4; ++j) {
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        float add = constant[j < kGroups ? j : 0][c][e & 1];
        if (j % 2 == 1 && pairs_of_tiles) add = constant[j - 1 < kGroups ? j - 1 : 0][c][e & 1];
        sum[j][c][e] += add * power_of_two(C::kUnitPower + C::power(j, e >> 1));
      }
    }
  }
}

// scales, centers: the block's first vector.
template <Bits kBits, int kColumns>
__device__ __forceinline__ void add_any_row_wise(const TensorLayout& layout, std::uint32_t block,
                                                 std::uint32_t scales, std::uint32_t centers,
                                                 Lane lane, std::uint32_t operands,
                                                 BlockSum<kColumns>& sum) {
  const FragmentA ones = {kHalfOnes, kHalfOnes, kHalfOnes, kHalfOnes};
  const int vector_bytes = 2 * (kPageTokens >> layout.row_shift);
  const int together = layout.group_depth == 16 ? 1 : 2;  // steps
  BlockSum<kColumns> product = {};
  FragmentC total[kColumns] = {};
#pragma unroll 1
  for (int step = 0; step < layout.steps; step += together) {
#pragma unroll
    for (int s = 0; s < 2; ++s) {
      if (s == 1 && (together == 1 || step + 1 == layout.steps)) break;
      FragmentA a[4];
      Codes<kBits>::load(block, step + s, layout.steps, lane, a);
#pragma unroll
      for (int c = 0; c < kColumns; ++c) {
        const uint2 b = load_operand_step<kColumns>(operands, step + s, c, lane);
#pragma unroll
        for (int j = 0; j < 4; ++j) multiply_add(product[j][c], a[j], b.x, b.y);
        multiply_add(total[c], ones, b.x, b.y);
      }
    }
    const int group = 16 * step >> layout.depth_shift;
    const int next = step + together;
    if (16 * next >> layout.depth_shift != group || next >= layout.steps) {
      float totals[kColumns][2];
#pragma unroll
      for (int c = 0; c < kColumns; ++c) {
        totals[c][0] = total[c][0], totals[c][1] = total[c][1];
#pragma unroll
        for (int e = 0; e < 4; ++e) total[c][e] = 0;
      }
      add_row_group<kBits>(layout, layout.group_rows, scales + group * vector_bytes,
                           centers + group * vector_bytes, lane, product, totals, sum);
    }
  }
}

template <int kColumns>
__device__ __forceinline__ void add_any_plain(const TensorLayout& layout, std::uint32_t block,
                                              Lane lane, std::uint32_t operands,
                                              BlockSum<kColumns>& sum) {
#pragma unroll 1
  for (int step = 0; step < layout.steps; ++step) {
    FragmentA a[4];
    Codes<Bits::k16>::load(block, step, layout.steps, lane, a);
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
      const uint2 b = load_operand_step<kColumns>(operands, step, c, lane);
#pragma unroll
      for (int j = 0; j < 4; ++j) multiply_add(sum[j][c], a[j], b.x, b.y);
    }
  }
}

// Block `block` of a tensor, in the page at shared address `page`, and the operands at `operands`.
template <Bits kBits, int kColumns>
__device__ __forceinline__ void add_any_product(const TensorLayout& layout, std::uint32_t page,
                                                int block, Lane lane, std::uint32_t operands,
                                                BlockSum<kColumns>& sum) {
  const std::uint32_t planes = page + layout.planes + block * layout.block_bytes;
  const std::uint32_t scales = page + layout.scales;
  const std::uint32_t centers = page + layout.centers;
  const int first_row = block * kPageTokens;
  if constexpr (kBits == Bits::k16) {
    add_any_plain(layout, planes, lane, operands, sum);
  } else if (!layout.depth_wise) {
    // Bytes of the vectors of the blocks before.
    const int before = 2 * block * layout.depth_groups * (kPageTokens >> layout.row_shift);
    add_any_row_wise<kBits>(layout, planes, scales + before, centers + before, lane, operands, sum);
  } else if (layout.group_rows >= kPageTokens) {
    add_any_depth_wise<kBits, true>(layout, planes, scales, centers, first_row, lane, operands,
                                    sum);
  } else {
    add_any_depth_wise<kBits, false>(layout, planes, scales, centers, first_row, lane, operands,
                                     sum);
  }
}

}  // namespace kvq::cuda
