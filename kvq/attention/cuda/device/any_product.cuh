// The product of a packed block with an operand, for any width, axis, group and parameters: all of
// them known at run time only. As block_product.cuh, which says what is computed; here the width is
// a switch in every step, and loops over steps are not unrolled, so that one small body serves all
// formats. Operands lie in shared memory: [step][column tile][lane], 8 bytes.
#pragma once

#include "kvq/attention/cuda/device/block_product.cuh"

namespace kvq::cuda {

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

__device__ __forceinline__ void load_any_codes(const TensorLayout& layout, std::uint32_t block,
                                               int step, Lane lane, FragmentA (&a)[4]) {
  switch (layout.bits) {
    case Bits::k1:
      return Codes<Bits::k1>::load(block, step, layout.steps, lane, a);
    case Bits::kTernary:
      return Codes<Bits::kTernary>::load(block, step, layout.steps, lane, a);
    case Bits::k2:
      return Codes<Bits::k2>::load(block, step, layout.steps, lane, a);
    case Bits::k3:
      return Codes<Bits::k3>::load(block, step, layout.steps, lane, a);
    case Bits::k4:
      return Codes<Bits::k4>::load(block, step, layout.steps, lane, a);
    case Bits::k5:
      return Codes<Bits::k5>::load(block, step, layout.steps, lane, a);
    case Bits::k6:
      return Codes<Bits::k6>::load(block, step, layout.steps, lane, a);
    case Bits::k8:
      return Codes<Bits::k8>::load(block, step, layout.steps, lane, a);
    case Bits::k16:
      return Codes<Bits::k16>::load(block, step, layout.steps, lane, a);
  }
}

// Row-wise parameters of a lane's rows, [tile][r], from the vector at `address`.
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

// Depth-wise parameters of vector `n` of a lane's depths of one step, in the order of an operand's
// b[0] and b[1].
__device__ __forceinline__ uint2 load_depth_parameters(std::uint32_t section,
                                                       const TensorLayout& layout, int n, int step,
                                                       Lane lane) {
  const int piece = step >> (layout.depth_shift + 1);  // of 2 * group_depth steps, 64 bytes
  const int x = step - (piece << (layout.depth_shift + 1));
  const std::uint32_t run = section + 64 * (piece * layout.row_groups + n) + 16 * lane.t;
  if (layout.group_depth == 4) {
    const std::uint32_t number = load_shared_2(run + 2 * x);
    return make_uint2(number * 0x00010001U, number * 0x00010001U);
  }
  const std::uint32_t even = load_shared_4(run + 4 * x);
  return make_uint2(even, layout.group_depth == 2 ? even : load_shared_4(run + 8 + 4 * x));
}

// One step's product of kTiles row tiles that share their parameters.
template <int kTiles, int kColumns>
__device__ __forceinline__ void add_any_depth_step(const TensorLayout& layout, std::uint32_t scales,
                                                   std::uint32_t centers, int n, int step, Lane lane,
                                                   const FragmentB (&operand)[kColumns],
                                                   const FragmentA* a, FragmentC (*sum)[kColumns],
                                                   FragmentC (&constant)[kColumns]) {
  const std::uint32_t minus_middle = layout.minus_middle;
  const FragmentA middle = {minus_middle, minus_middle, minus_middle, minus_middle};
  const uint2 scale = load_depth_parameters(scales, layout, n, step, lane);
#pragma unroll
  for (int c = 0; c < kColumns; ++c) {
    const std::uint32_t b0 = multiply(operand[c][0], scale.x);
    const std::uint32_t b1 = multiply(operand[c][1], scale.y);
#pragma unroll
    for (int j = 0; j < kTiles; ++j) multiply_add(sum[j][c], a[j], b0, b1);
    multiply_add(constant[c], middle, b0, b1);
  }
  if (!layout.affine) return;
  const uint2 center = load_depth_parameters(centers, layout, n, step, lane);
  const FragmentA center_rows = {center.x, center.x, center.y, center.y};
#pragma unroll
  for (int c = 0; c < kColumns; ++c) {
    multiply_add(constant[c], center_rows, operand[c][0], operand[c][1]);
  }
}

template <int kColumns>
__device__ __forceinline__ std::uint32_t operand_address(std::uint32_t operands, int step, Lane lane) {
  return operands + 256 * kColumns * step + 8 * lane.index;
}
template <int kSteps, int kColumns>
__device__ __forceinline__ void store_operand(const Operand<kSteps, kColumns>& operand,
                                              std::uint32_t operands, Lane lane) {
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
      store_shared_8(operand_address<kColumns>(operands, step, lane) + 256 * c,
                     make_uint2(operand.b[step][c][0], operand.b[step][c][1]));
    }
  }
  __syncwarp();
}
template <int kColumns>
__device__ __forceinline__ void load_operand(std::uint32_t operands, int step, Lane lane,
                                             FragmentB (&b)[kColumns]) {
#pragma unroll
  for (int c = 0; c < kColumns; ++c) {
    const uint2 words = load_shared_8(operand_address<kColumns>(operands, step, lane) + 256 * c);
    b[c][0] = words.x, b[c][1] = words.y;
  }
}

template <int kColumns>
__device__ __forceinline__ void add_any_depth_wise(const TensorLayout& layout, std::uint32_t block,
                                                   std::uint32_t scales, std::uint32_t centers,
                                                   int first_row, Lane lane,
                                                   std::uint32_t operands,
                                                   BlockSum<kColumns>& sum) {
  const bool shared = layout.group_rows >= kPageTokens;  // by all rows of the block
  BlockSum<kColumns> constant = {};
#pragma unroll 1
  for (int step = 0; step < layout.steps; ++step) {
    FragmentA a[4];
    FragmentB b[kColumns];
    load_operand(operands, step, lane, b);
    load_any_codes(layout, block, step, lane, a);
    if (shared) {
      const int n = first_row >> layout.row_shift;
      add_any_depth_step<4>(layout, scales, centers, n, step, lane, b, a, sum,
                            constant[0]);
      continue;
    }
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int n = (first_row + 16 * j) >> layout.row_shift;
      add_any_depth_step<1>(layout, scales, centers, n, step, lane, b, &a[j], &sum[j],
                            constant[j]);
    }
  }
#pragma unroll
  for (int j = 0; j < 4; ++j) {
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const float add = shared ? constant[0][c][e & 1] : constant[j][c][e & 1];
        sum[j][c][e] += add * power_of_two(unit_exponent(layout.bits, j, e >> 1));
      }
    }
  }
}

// scales, centers: the block's first vector.
template <int kColumns>
__device__ __forceinline__ void add_any_row_wise(const TensorLayout& layout, std::uint32_t block,
                                                 std::uint32_t scales, std::uint32_t centers,
                                                 Lane lane, std::uint32_t operands,
                                                 BlockSum<kColumns>& sum) {
  const FragmentA ones = {kHalfOnes, kHalfOnes, kHalfOnes, kHalfOnes};
  const int vector_bytes = 2 * (kPageTokens >> layout.row_shift);
  BlockSum<kColumns> product = {};
  FragmentC total[kColumns] = {};
#pragma unroll 1
  for (int step = 0; step < layout.steps; ++step) {
    FragmentA a[4];
    FragmentB b[kColumns];
    load_operand(operands, step, lane, b);
    load_any_codes(layout, block, step, lane, a);
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
#pragma unroll
      for (int j = 0; j < 4; ++j) multiply_add(product[j][c], a[j], b[c][0], b[c][1]);
      multiply_add(total[c], ones, b[c][0], b[c][1]);
    }
    const int group = 16 * step >> layout.depth_shift;
    const bool group_ends = 16 * (step + 1) >> layout.depth_shift != group;
    if (!group_ends && step + 1 != layout.steps) continue;
    const int vector = group * vector_bytes;
    float scale[4][2];
    float center[4][2] = {};
    load_any_row_parameters(scales + vector, layout.group_rows, lane, scale);
    if (layout.affine) load_any_row_parameters(centers + vector, layout.group_rows, lane, center);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
#pragma unroll
      for (int c = 0; c < kColumns; ++c) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const int r = e >> 1;
          const float constant =
              total[c][e & 1] * power_of_two(unit_exponent(layout.bits, j, r));
          sum[j][c][e] += scale[j][r] * (product[j][c][e] - layout.middle * constant) +
                          center[j][r] * constant;
          product[j][c][e] = 0;
        }
      }
    }
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
#pragma unroll
      for (int e = 0; e < 4; ++e) total[c][e] = 0;
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
    FragmentB b[kColumns];
    load_operand(operands, step, lane, b);
    Codes<Bits::k16>::load(block, step, layout.steps, lane, a);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
#pragma unroll
      for (int c = 0; c < kColumns; ++c) {
        multiply_add(sum[j][c], a[j], b[c][0], b[c][1]);
      }
    }
  }
}

// Block `block` of a tensor, in the page at shared address `page`, and the operands at `operands`.
template <int kColumns>
__device__ __forceinline__ void add_any_product(const TensorLayout& layout, std::uint32_t page,
                                                int block, Lane lane, std::uint32_t operands,
                                                BlockSum<kColumns>& sum) {
  const std::uint32_t planes = page + layout.planes + block * layout.block_bytes;
  if (layout.bits == Bits::k16) {
    add_any_plain(layout, planes, lane, operands, sum);
  } else if (layout.depth_wise) {
    add_any_depth_wise(layout, planes, page + layout.scales, page + layout.centers,
                       block * kPageTokens, lane, operands, sum);
  } else {
    // Bytes of the vectors of the blocks before.
    const int before = 2 * block * layout.depth_groups * (kPageTokens >> layout.row_shift);
    add_any_row_wise(layout, planes, page + layout.scales + before, page + layout.centers + before,
                     lane, operands, sum);
  }
}

// Multiplies with 2^(sign * unit exponent) * factor: sign -1 takes sums to units of 1, 1 takes them
// back.
template <int kColumns>
__device__ __forceinline__ void scale_any_units(Bits bits, int sign, float factor,
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

}  // namespace kvq::cuda
