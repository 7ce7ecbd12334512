// Joins what warps have of one item: first warps of a block in shared memory, then blocks in
// memory, by whoever arrives last.
//
// A partial result: rows [heads][channels] = sum of 2^(score - reference) * value in units of 1, in
// the rotated space of the values if they are rotated, and for each head {reference, sum of
// 2^(score - reference)}. Both sums carry the same factor 2^kWeightPower.
#pragma once

#include "kvq/attention/cuda/device/softmax.cuh"
#include "kvq/attention/cuda/device/work.cuh"

namespace kvq::cuda {

// What is needed of an item once its last unit here is done.
struct Closing {
  Work::Contributors contributors;
  int item;
  std::int64_t first_head;  // of the item in query and output
  int heads;
};

__device__ __forceinline__ void store_number(void* numbers, NumberType type, std::int64_t index,
                                             float number) {
  if (type == NumberType::kFloat32) {
    static_cast<float*>(numbers)[index] = number;
  } else if (type == NumberType::kFloat16) {
    static_cast<__half*>(numbers)[index] = __float2half_rn(number);
  } else {
    static_cast<__nv_bfloat16*>(numbers)[index] = __float2bfloat16_rn(number);
  }
}

__device__ __forceinline__ float inverse_or_zero(float sum) { return sum == 0 ? 0 : 1 / sum; }

// Counts one more partial result in memory; true for the last one, which may then read the others.
__device__ __forceinline__ bool arrive(ItemCounter& counter, int expected) {
  std::uint32_t before;
  asm volatile("atom.add.acq_rel.gpu.global.u32 %0, [%1], 1;"
               : "=r"(before)
               : "l"(&counter.arrivals)
               : "memory");
  const bool last = before + 1 == static_cast<std::uint32_t>(expected);
  if (last) counter = {};  // nobody claims any more: a warp arrives after its last claim
  return last;
}

// One warp's result, in registers.
template <int kBlocks, int kColumns>
class WarpResult {
 public:
  static constexpr int kChannels = 64 * kBlocks;

  // Joins the other results if this one is the last, and writes the output; else leaves this one in
  // `slot`. slots: number of results, of which slot_of(i) holds one.
  template <class SlotOf>
  __device__ static void finish(const DecodeParams& params, const Closing& closing, int own_slot,
                                int count, const SlotOf& slot_of, Lane lane,
                                SoftmaxSum<kBlocks, kColumns>& sum) {
    if (count > 1) {
      store(params, closing, own_slot, lane, sum);
      __threadfence();
      __syncwarp();
      int last = 0;
      if (lane.index == 0) last = arrive(params.counters[closing.item], count) ? 1 : 0;
      if (__shfl_sync(0xffffffffU, last, 0) == 0) return;
      __threadfence();
      for (int i = 0; i < count; ++i) {
        if (slot_of(i) != own_slot) join(params, closing, slot_of(i), lane, sum);
      }
    }
    if (params.value_rotation > 1) rotate_values(sum.values, params.value_rotation, lane);
    write(params, closing, lane, sum);
  }

 private:
  // Calls use(c, e, head) for the heads of a lane.
  template <class Use>
  __device__ static __forceinline__ void for_heads(const Closing& closing, Lane lane,
                                                   const Use& use) {
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int head = kHeadTile * c + 2 * lane.t + e;
        if (head < closing.heads) use(c, e, head);
      }
    }
  }

  __device__ static void store(const DecodeParams& params, const Closing& closing, int slot,
                               Lane lane, const SoftmaxSum<kBlocks, kColumns>& sum) {
    float* const partial = params.partials + static_cast<std::int64_t>(slot) * params.partial_floats;
    for_heads(closing, lane, [&](int c, int e, int head) {
#pragma unroll
      for (int tile = 0; tile < 4 * kBlocks; ++tile) {
        const FragmentC& x = sum.values[tile / 4][tile % 4][c];
        *reinterpret_cast<float2*>(partial + head * kChannels + 16 * tile + 2 * lane.g) =
            make_float2(x[e], x[e + 2]);
      }
      if (lane.g == 0) {
        *reinterpret_cast<float2*>(partial + closing.heads * kChannels + 2 * head) =
            make_float2(sum.reference[c][e], sum.weights[c][e]);
      }
    });
  }

  __device__ static void join(const DecodeParams& params, const Closing& closing, int slot,
                              Lane lane, SoftmaxSum<kBlocks, kColumns>& sum) {
    const float* const partial =
        params.partials + static_cast<std::int64_t>(slot) * params.partial_floats;
    for_heads(closing, lane, [&](int c, int e, int head) {
      const float2 other = __ldcg(
          reinterpret_cast<const float2*>(partial + closing.heads * kChannels + 2 * head));
      const float reference = fmaxf(sum.reference[c][e], other.x);
      const float mine = exp2_fast(sum.reference[c][e] - reference);
      const float theirs = exp2_fast(other.x - reference);
      sum.reference[c][e] = reference;
      sum.weights[c][e] = sum.weights[c][e] * mine + other.y * theirs;
#pragma unroll
      for (int tile = 0; tile < 4 * kBlocks; ++tile) {
        FragmentC& x = sum.values[tile / 4][tile % 4][c];
        const float2 row = __ldcg(reinterpret_cast<const float2*>(partial + head * kChannels +
                                                                 16 * tile + 2 * lane.g));
        x[e] = x[e] * mine + row.x * theirs;
        x[e + 2] = x[e + 2] * mine + row.y * theirs;
      }
    });
  }

  __device__ static void write(const DecodeParams& params, const Closing& closing, Lane lane,
                               const SoftmaxSum<kBlocks, kColumns>& sum) {
    for_heads(closing, lane, [&](int c, int e, int head) {
      const float factor = inverse_or_zero(sum.weights[c][e]);
      const std::int64_t row = (closing.first_head + head) * params.head_dim;
#pragma unroll
      for (int tile = 0; tile < 4 * kBlocks; ++tile) {
        if (16 * tile >= params.head_dim) break;
        const FragmentC& x = sum.values[tile / 4][tile % 4][c];
        for (int r = 0; r < 2; ++r) {
          store_number(params.output, params.output_type, row + 16 * tile + 2 * lane.g + r,
                       x[e + 2 * r] * factor);
        }
      }
    });
  }
};

// The results of neighbouring warps of a block that ended in the same item.
//
// Shared memory of a warp: rows [heads][channels + 8] (the 8 keep the lanes' stores apart), then
// {reference, sum} of each head, then the same of the group's joint result.
template <int kBlocks, int kColumns>
class GroupResult {
 public:
  static constexpr int kChannels = 64 * kBlocks;
  static constexpr int kStride = kChannels + 8;
  static constexpr int kHeads = kHeadTile * kColumns;
  static constexpr int kBytes = 4 * (kHeads * kStride + 4 * kHeads);

  // first: of the group in its block; rank: of this warp in the group.
  // regions: shared memory of the block's first warp; flag: of the group.
  __device__ GroupResult(const DecodeParams& params, const Closing& closing, std::byte* regions,
                         int* flag, int first, int rank, int size, Lane lane)
      : params_(params),
        closing_(closing),
        regions_(regions + first * params.region_bytes),
        flag_(flag),
        barrier_(first + 1),
        rank_(rank),
        size_(size),
        lane_(lane) {}

  __device__ void finish(const SoftmaxSum<kBlocks, kColumns>& sum, int first_warp,
                         int warps_per_block, int warps) {
    deposit(sum);
    synchronize();
    const int count = closing_.contributors.count(warps_per_block);
    join_warps(count == 1 ? nullptr : slot(first_warp));
    if (count > 1) {
      __threadfence();
      synchronize();
      if (rank_ == 0 && lane_.index == 0) {
        *flag_ = arrive(params_.counters[closing_.item], count) ? 1 : 0;
      }
      synchronize();
      if (*static_cast<volatile int*>(flag_) == 0) return;
      __threadfence();
      join_blocks(count, warps_per_block, warps);
    }
    synchronize();
    write();
  }

  // Slot number of result i of an item: that of each block's first warp, then the passing one.
  __device__ static int slot_number(const Work::Contributors& contributors, int i,
                                    int warps_per_block, int warps) {
    if (i == contributors.blocks(warps_per_block)) return warps + contributors.last + 1;
    return i == 0 ? contributors.first
                  : (contributors.first / warps_per_block + i) * warps_per_block;
  }

 private:
  __device__ void synchronize() const {
    asm volatile("bar.sync %0, %1;" ::"r"(barrier_), "r"(32 * size_) : "memory");
  }
  __device__ float* rows(int rank) const {
    return reinterpret_cast<float*>(regions_ + rank * params_.region_bytes);
  }
  __device__ float2* states(int rank) const {
    return reinterpret_cast<float2*>(rows(rank) + kHeads * kStride);
  }
  __device__ float2* joint_states() const { return states(0) + kHeads; }
  __device__ float* slot(int number) const {
    return params_.partials + static_cast<std::int64_t>(number) * params_.partial_floats;
  }

  __device__ void deposit(const SoftmaxSum<kBlocks, kColumns>& sum) const {
    float* const mine = rows(rank_);
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int head = kHeadTile * c + 2 * lane_.t + e;
#pragma unroll
        for (int tile = 0; tile < 4 * kBlocks; ++tile) {
          const FragmentC& x = sum.values[tile / 4][tile % 4][c];
          *reinterpret_cast<float2*>(mine + head * kStride + 16 * tile + 2 * lane_.g) =
              make_float2(x[e], x[e + 2]);
        }
        if (lane_.g == 0) {
          states(rank_)[head] = make_float2(sum.reference[c][e], sum.weights[c][e]);
        }
      }
    }
  }

  // Calls use(head, channel) for the quads of channels that fall to a thread.
  template <class Use>
  __device__ __forceinline__ void for_quads(const Use& use) const {
    for (int i = 32 * rank_ + lane_.index; i < closing_.heads * (kChannels / 4); i += 32 * size_) {
      use(i / (kChannels / 4), 4 * (i % (kChannels / 4)));
    }
  }

  __device__ static void add(float4& sum, const float4& row, float factor) {
    sum.x += row.x * factor;
    sum.y += row.y * factor;
    sum.z += row.z * factor;
    sum.w += row.w * factor;
  }

  // The joint result of the group to a slot, or over the rows of its first warp.
  __device__ void join_warps(float* partial) const {
    for_quads([&](int head, int channel) {
      float reference = kNoReference;
      for (int i = 0; i < size_; ++i) reference = fmaxf(reference, states(i)[head].x);
      float weights = 0;
      float4 sum = {};
      for (int i = 0; i < size_; ++i) {
        const float2 state = states(i)[head];
        const float factor = exp2_fast(state.x - reference);
        weights += state.y * factor;
        add(sum, *reinterpret_cast<const float4*>(rows(i) + head * kStride + channel), factor);
      }
      float* const row = partial != nullptr ? partial + head * kChannels : rows(0) + head * kStride;
      *reinterpret_cast<float4*>(row + channel) = sum;
      if (channel == 0) {
        float2* const states = partial != nullptr
                                   ? reinterpret_cast<float2*>(partial + closing_.heads * kChannels)
                                   : joint_states();
        states[head] = make_float2(reference, weights);
      }
    });
  }

  __device__ void join_blocks(int count, int warps_per_block, int warps) const {
    const auto number = [&](int i) {
      return slot_number(closing_.contributors, i, warps_per_block, warps);
    };
    for_quads([&](int head, int channel) {
      const auto state_of = [&](int i) {
        return __ldcg(reinterpret_cast<const float2*>(slot(number(i)) +
                                                      closing_.heads * kChannels + 2 * head));
      };
      float reference = kNoReference;
#pragma unroll 8
      for (int i = 0; i < count; ++i) reference = fmaxf(reference, state_of(i).x);
      float weights = 0;
      float4 sum = {};
#pragma unroll 8
      for (int i = 0; i < count; ++i) {
        const float2 state = state_of(i);
        const float factor = exp2_fast(state.x - reference);
        weights += state.y * factor;
        add(sum,
            __ldcg(reinterpret_cast<const float4*>(slot(number(i)) + head * kChannels + channel)),
            factor);
      }
      *reinterpret_cast<float4*>(rows(0) + head * kStride + channel) = sum;
      if (channel == 0) joint_states()[head] = make_float2(reference, weights);
    });
  }

  __device__ void write() const {
    for (int head = rank_; head < closing_.heads; head += size_) {
      const float factor = inverse_or_zero(joint_states()[head].y);
      float x[2 * kBlocks];  // channel 32 i + lane
      for (int i = 0; i < 2 * kBlocks; ++i) {
        x[i] = rows(0)[head * kStride + 32 * i + lane_.index] * factor;
      }
      rotate(x);
      const std::int64_t row = (closing_.first_head + head) * params_.head_dim;
      for (int i = 0; i < 2 * kBlocks; ++i) {
        if (32 * i + lane_.index >= params_.head_dim) break;
        store_number(params_.output, params_.output_type, row + 32 * i + lane_.index, x[i]);
      }
    }
  }

  __device__ void rotate(float (&x)[2 * kBlocks]) const {
    const int length = params_.value_rotation;
    const float factor = rsqrtf(static_cast<float>(length));
#pragma unroll
    for (int i = 0; i < 2 * kBlocks; ++i) {
      for (int distance = 1; distance < min(length, 32); distance *= 2) {
        const float other = __shfl_xor_sync(0xffffffffU, x[i], distance);
        x[i] = (lane_.index & distance) ? other - x[i] : x[i] + other;
      }
      x[i] *= factor;
    }
#pragma unroll
    for (int distance = 1; distance < 2 * kBlocks; distance *= 2) {
      if (32 * distance >= length) break;
#pragma unroll
      for (int i = 0; i < 2 * kBlocks; ++i) {
        if (i & distance) continue;
        const float sum = x[i] + x[i + distance];
        x[i + distance] = x[i] - x[i + distance];
        x[i] = sum;
      }
    }
  }

  const DecodeParams& params_;
  const Closing& closing_;
  std::byte* regions_;
  int* flag_;
  int barrier_;
  int rank_;
  int size_;
  Lane lane_;
};

}  // namespace kvq::cuda
