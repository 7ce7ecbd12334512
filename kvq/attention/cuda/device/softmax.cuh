// The running softmax of one item in one warp, and its weighted sum of values.
//
// Weights are 2^(score - reference + 5), rounded to fp16; their sum is taken of the rounded ones. A
// reference stays until a score exceeds it by 3: weights then lie below 2^8, which leaves fp16 room
// for value scales up to 255, and only then lanes talk to each other and sums are rescaled.
#pragma once

#include "kvq/attention/cuda/device/block_product.cuh"

namespace kvq::cuda {

inline constexpr float kWeightPower = 5;
inline constexpr float kSlack = 3;
inline constexpr float kNoReference = -1e30F;

template <int kBlocks, int kColumns>
struct SoftmaxSum {
  float reference[kColumns][2];           // of heads 2t, 2t + 1 of each tile of columns
  FragmentC weights[kColumns];            // sum of the weights; rows alike
  BlockSum<kColumns> values[kBlocks];     // sum of weight * value
  float constants[kBlocks][kColumns][2];  // to be added to all channels of a block, in units of 1

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
      reference[c][0] = reference[c][1] = kNoReference;
#pragma unroll
      for (int e = 0; e < 4; ++e) weights[c][e] = 0;
    }
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) {
#pragma unroll
      for (int c = 0; c < kColumns; ++c) {
        constants[block][c][0] = constants[block][c][1] = 0;
#pragma unroll
        for (int j = 0; j < 4; ++j) {
#pragma unroll
          for (int e = 0; e < 4; ++e) values[block][j][c][e] = 0;
        }
      }
    }
  }

  // Turns scores in units of log2 into weights, operands of the product with values, and counts
  // them. -infinity: no such token.
  template <int kTiles>
  __device__ __forceinline__ void weigh(const FragmentC (&scores)[kTiles][kColumns],
                                        Operand<kTiles, kColumns>& operand);
};

template <int kBlocks, int kColumns>
template <int kTiles>
__device__ __forceinline__ void SoftmaxSum<kBlocks, kColumns>::weigh(
    const FragmentC (&scores)[kTiles][kColumns], Operand<kTiles, kColumns>& operand) {
  bool beyond = false;
#pragma unroll
  for (int c = 0; c < kColumns; ++c) {
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      float greatest = fmaxf(scores[0][c][e], scores[0][c][e + 2]);
#pragma unroll
      for (int j = 1; j < kTiles; ++j) {
        greatest = fmaxf(greatest, fmaxf(scores[j][c][e], scores[j][c][e + 2]));
      }
      beyond |= greatest > reference[c][e] + kSlack;
    }
  }
  if (__any_sync(0xffffffffU, beyond)) {
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        float greatest = reference[c][e];
#pragma unroll
        for (int j = 0; j < kTiles; ++j) {
          greatest = fmaxf(greatest, fmaxf(scores[j][c][e], scores[j][c][e + 2]));
        }
#pragma unroll
        for (int distance = 4; distance < 32; distance *= 2) {
          greatest = fmaxf(greatest, __shfl_xor_sync(0xffffffffU, greatest, distance));
        }
        const float factor = exp2_fast(reference[c][e] - greatest);
        reference[c][e] = greatest;
        weights[c][e] *= factor;
        weights[c][e + 2] *= factor;
#pragma unroll
        for (int block = 0; block < kBlocks; ++block) {
          constants[block][c][e] *= factor;
#pragma unroll
          for (int j = 0; j < 4; ++j) {
            values[block][j][c][e] *= factor;
            values[block][j][c][e + 2] *= factor;
          }
        }
      }
    }
  }
  const FragmentA ones = {kHalfOnes, kHalfOnes, kHalfOnes, kHalfOnes};
#pragma unroll
  for (int j = 0; j < kTiles; ++j) {
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
      const float bias[2] = {kWeightPower - reference[c][0], kWeightPower - reference[c][1]};
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        operand.b[j][c][r] = transpose(pack(exp2_fast(scores[j][c][2 * r] + bias[0]),
                                            exp2_fast(scores[j][c][2 * r + 1] + bias[1])));
      }
      multiply_add(weights[c], ones, operand.b[j][c][0], operand.b[j][c][1]);
    }
  }
}

// Orthonormal Walsh-Hadamard transform over `length` channels of sums in units of 1: channel
// 64 block + 16 j + 2 g + r is values[block][j][c][2 r + e] of lane 4g + t.
template <int kBlocks, int kColumns>
__device__ __noinline__ void rotate_values(BlockSum<kColumns> (&values)[kBlocks], int length,
                                           Lane lane) {
  const float factor = rsqrtf(static_cast<float>(length));
  float signs[3];
#pragma unroll
  for (int i = 0; i < 3; ++i) signs[i] = (lane.g >> i & 1) != 0 ? -1.0F : 1.0F;
#pragma unroll 1
  for (int c = 0; c < kColumns; ++c) {
    float x[4 * kBlocks][4];
#pragma unroll
    for (int tile = 0; tile < 4 * kBlocks; ++tile) {
      const FragmentC& from = values[tile / 4][tile % 4][c];
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        x[tile][e] = (from[e] + from[e + 2]) * factor;
        x[tile][e + 2] = (from[e] - from[e + 2]) * factor;
      }
#pragma unroll
      for (int i = 0; i < 3; ++i) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const float other = __shfl_xor_sync(0xffffffffU, x[tile][e], 4 << i);
          x[tile][e] = fmaf(x[tile][e], signs[i], other);
        }
      }
    }
#pragma unroll
    for (int distance = 1; distance < 4 * kBlocks; distance *= 2) {
      if (16 * distance >= length) break;
#pragma unroll
      for (int tile = 0; tile < 4 * kBlocks; ++tile) {
        if (tile & distance) continue;
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const float sum = x[tile][e] + x[tile + distance][e];
          x[tile + distance][e] = x[tile][e] - x[tile + distance][e];
          x[tile][e] = sum;
        }
      }
    }
#pragma unroll
    for (int tile = 0; tile < 4 * kBlocks; ++tile) {
#pragma unroll
      for (int e = 0; e < 4; ++e) values[tile / 4][tile % 4][c][e] = x[tile][e];
    }
  }
}

}  // namespace kvq::cuda
