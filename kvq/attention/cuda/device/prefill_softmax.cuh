// The running softmax of a warp's 16 rows and their weighted sums of values.
//
// Weights are 2^(score - reference). A row's reference stays until a score exceeds it by 8, which
// fp16 weights have room for; only then lanes talk to each other and sums are rescaled.
#pragma once

#include <limits>

#include "kvq/attention/cuda/device/prefill_product.cuh"

namespace kvq::cuda {

inline constexpr float kPrefillSlack = 8;
inline constexpr float kPrefillNoReference = -1e30F;

// The positions of a unit that a row sees: number x is seen if x < limit or first <= x <= last.
struct Visible {
  int limit;
  int first;
  int last;
};

template <int kBlocks>
class RowSums {
 public:
  float reference[2];  // of rows g, g + 8
  float weight[2];     // sum of this lane's weights
  BlockC values[kBlocks];

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      reference[h] = kPrefillNoReference;
      weight[h] = 0;
    }
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) {
#pragma unroll
      for (int i = 0; i < 32; ++i) values[block][i] = 0;
    }
  }

  __device__ __forceinline__ void multiply_values(float factor) {
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) {
#pragma unroll
      for (int i = 0; i < 32; ++i) values[block][i] *= factor;
    }
  }

  // Turns scores into weights, with references moved_ if a score is far above its row's.
  // rescale_values() then is to be called once values are at rest, before weights are used.
  __device__ __forceinline__ void weigh(const float (&factor)[2], BlockC& scores) {
    follow(factor, scores);
#pragma unroll
    for (int i = 0; i < 32; ++i) {
      const int h = i / 2 % 2;
      scores[i] = exp2_fast(fmaf(scores[i], factor[h], -reference[h]));
      weight[h] += scores[i];
    }
  }

  __device__ __forceinline__ void rescale_values() {
    if (!moved_) return;
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) {
#pragma unroll
      for (int i = 0; i < 32; ++i) values[block][i] *= rescale_[i / 2 % 2];
    }
  }

 private:
  __device__ __forceinline__ void follow(const float (&factor)[2], const BlockC& scores) {
    float greatest[2] = {-std::numeric_limits<float>::infinity(),
                         -std::numeric_limits<float>::infinity()};
#pragma unroll
    for (int i = 0; i < 32; ++i) greatest[i / 2 % 2] = fmaxf(greatest[i / 2 % 2], scores[i]);
    bool exceeds = false;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      greatest[h] *= factor[h];
      exceeds = exceeds || greatest[h] > reference[h] + kPrefillSlack;
    }
    moved_ = __any_sync(0xffffffffU, exceeds);
    if (!moved_) return;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
#pragma unroll
      for (int distance = 1; distance <= 2; distance *= 2) {
        greatest[h] = fmaxf(greatest[h], __shfl_xor_sync(0xffffffffU, greatest[h], distance));
      }
      const float next = fmaxf(reference[h], greatest[h]);
      rescale_[h] = exp2_fast(reference[h] - next);
      reference[h] = next;
      weight[h] *= rescale_[h];
    }
  }

  bool moved_;  // the same in all lanes: values are to be multiplied with rescale_
  float rescale_[2];
};

// Scores that a row does not see become -infinity. first: number of the unit's first position.
__device__ __forceinline__ void mask_scores(const Visible (&visible)[2], int first, Lane lane,
                                            BlockC& scores) {
#pragma unroll
  for (int i = 0; i < 32; ++i) {
    const Visible& row = visible[i / 2 % 2];
    const int x = first + i / 4 * 8 + 2 * lane.t + i % 2;
    const bool seen = x < row.limit || (x >= row.first && x <= row.last);
    if (!seen) scores[i] = -std::numeric_limits<float>::infinity();
  }
}

}  // namespace kvq::cuda
