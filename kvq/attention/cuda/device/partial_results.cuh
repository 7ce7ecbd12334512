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

// Shared memory before the warps' regions: for each of 16 warps a barrier of 8 bytes, a flag for what
// it ends with and one for what it passes, and the closings of both.
inline constexpr int kSharedFlags = 128;
inline constexpr int kSharedCuts = 256;
inline constexpr int kSharedClosings = kSharedCuts + 16 * sizeof(Cut);
static_assert(kSharedClosings + 2 * 16 * sizeof(Closing) <= kSharedHeader);

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
// Called by one thread between two barriers of its block, it speaks for all of the block.
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

// The slots of an item's results: those of its blocks' first warps, then that of the passing warp.
struct Slots {
  int count;
  int blocks;
  int first;
  int first_block;
  int block_warps;
  int passing;

  __device__ Slots(const Work::Contributors& contributors, int warps_per_block, int warps)
      : blocks(contributors.blocks(warps_per_block)),
        first(contributors.first),
        first_block(contributors.first / warps_per_block),
        block_warps(warps_per_block),
        passing(warps + contributors.last + 1) {
    count = blocks + (contributors.passing ? 1 : 0);
  }
  __device__ int operator[](int i) const {
    return i == blocks ? passing : max(first, (first_block + i) * block_warps);
  }
};

// One warp's result, when it has ended an item before its last. In local memory, in small loops:
// this is seldom, and code that is run once has to be fetched first.
template <int kBlocks, int kColumns>
class WarpResult {
 public:
  static constexpr int kChannels = 64 * kBlocks;

  // To a slot; whoever arrives for it lets others know.
  __device__ static __noinline__ void store(const Closing& closing, float* partial, Lane lane,
                                            const SoftmaxSum<kBlocks, kColumns>& sum) {
    for_heads(closing, lane, [&](int c, int e, int head) {
#pragma unroll 4
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

  // The whole item's result: to the output.
  __device__ static __noinline__ void write(const DecodeParams& params, const Closing& closing,
                                            Lane lane, SoftmaxSum<kBlocks, kColumns>& sum) {
    if (params.value_rotation > 1) rotate_values(sum.values, params.value_rotation, lane);
    for_heads(closing, lane, [&](int c, int e, int head) {
      const float factor = inverse_or_zero(sum.weights[c][e]);
      const std::int64_t row = (closing.first_head + head) * params.head_dim;
#pragma unroll 1
      for (int tile = 0; 16 * tile < params.head_dim; ++tile) {
        const FragmentC& x = sum.values[tile / 4][tile % 4][c];
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          store_number(params.output, params.output_type, row + 16 * tile + 2 * lane.g + r,
                       x[e + 2 * r] * factor);
        }
      }
    });
  }

 private:
  // Calls use(c, e, head) for the heads of a lane.
  template <class Use>
  __device__ static __forceinline__ void for_heads(const Closing& closing, Lane lane,
                                                   const Use& use) {
#pragma unroll 1
    for (int i = 0; i < 2 * kColumns; ++i) {
      const int head = kHeadTile * (i / 2) + 2 * lane.t + i % 2;
      if (head < closing.heads) use(i / 2, i % 2, head);
    }
  }
};

// The results of all warps of a block, whose last items may differ: warps of one item are neighbours,
// a group. All threads of the block take part in every group's work.
//
// Shared memory of a warp: rows [heads][channels + 8] (the 8 keep the lanes' stores apart), then
// {reference, sum} of each head, then the same of the joint result of the group that it leads.
template <int kBlocks, int kColumns>
class BlockResult {
 public:
  static constexpr int kChannels = 64 * kBlocks;
  static constexpr int kStride = kChannels + 8;
  static constexpr int kHeads = kHeadTile * kColumns;
  static constexpr int kBytes = 4 * (kHeads * kStride + 4 * kHeads);

  __device__ BlockResult(const DecodeParams& params, std::byte* shared, Lane lane)
      : params_(params),
        regions_(shared + kSharedHeader),
        closings_(reinterpret_cast<Closing*>(shared + kSharedClosings)),
        flags_(reinterpret_cast<int*>(shared + kSharedFlags)),
        index_(static_cast<int>(threadIdx.x / 32)),
        block_warps_(static_cast<int>(blockDim.x / 32)),
        first_warp_(static_cast<int>(blockIdx.x) * block_warps_),
        warps_(static_cast<int>(gridDim.x) * block_warps_),
        lane_(lane) {}

  // Every warp has written its closing. passed: this warp has left the result of an item that
  // others have results of, too, in its slot.
  __device__ void finish(bool passed, const SoftmaxSum<kBlocks, kColumns>& sum) {
    deposit(sum);
    __syncthreads();
    const unsigned leaders = ballot_warps([&](int warp) { return leader_of(warp) == warp; });
    for_quads(leaders, closings_,
              [&](int warp, int head, int channel) { join_warps(warp, head, channel); });
    __syncthreads();
    arrive_for_warp((leaders >> index_ & 1) != 0, passed);
    __syncthreads();
    const unsigned last = ballot_warps([&](int warp) { return flags_[warp] == kLast; });
    const unsigned alone = ballot_warps([&](int warp) { return flags_[warp] == kAlone; });
    complete(last, alone, closings_);
    const unsigned last_passed = ballot_warps([&](int warp) { return flags_[16 + warp] == kLast; });
    if (last_passed == 0) return;
    __syncthreads();
    complete(last_passed, 0, closings_ + 16);
  }

 private:
  enum Flag : int { kNone, kNotLast, kLast, kAlone };

  // The warps of the block for which test(warp) holds.
  template <class Test>
  __device__ __forceinline__ unsigned ballot_warps(const Test& test) const {
    return __ballot_sync(0xffffffffU, lane_.index < block_warps_ && test(lane_.index));
  }
  // The first warp of the block with the same last item.
  __device__ int leader_of(int warp) const {
    return max(closings_[warp].contributors.first - first_warp_, 0);
  }
  __device__ int group_size(int leader) const {
    const int last = closings_[leader].contributors.last - first_warp_;
    return min(last, block_warps_ - 1) - leader + 1;
  }

  // Lane 0 arrives for the group that the warp leads, lane 1 for the item that it passed.
  __device__ void arrive_for_warp(bool leads, bool passed) const {
    if (lane_.index >= 2) return;
    int flag = kNone;
    if (lane_.index == 0 ? leads : passed) {
      const Closing& closing = closings_[16 * lane_.index + index_];
      const int count = closing.contributors.count(block_warps_);
      flag = kAlone;
      if (count > 1) flag = arrive(params_.counters[closing.item], count) ? kLast : kNotLast;
    }
    flags_[16 * lane_.index + index_] = flag;
  }

  // Joins the results of the items of `last` and writes them and those of `alone`.
  __device__ void complete(unsigned last, unsigned alone, const Closing* closings) const {
    if (last != 0) {
      for_quads(last, closings, [&](int warp, int head, int channel) {
        join_blocks(closings[warp], warp, head, channel);
      });
      __syncthreads();
    }
    write(last | alone, closings);
  }

  __device__ float* rows(int warp) const {
    return reinterpret_cast<float*>(regions_ + warp * params_.region_bytes);
  }
  __device__ float2* states(int warp) const {
    return reinterpret_cast<float2*>(rows(warp) + kHeads * kStride);
  }
  __device__ float2* joint_states(int leader) const { return states(leader) + kHeads; }
  __device__ float* slot(int number) const {
    return params_.partials + static_cast<std::int64_t>(number) * params_.partial_floats;
  }

  __device__ void deposit(const SoftmaxSum<kBlocks, kColumns>& sum) const {
    float* const mine = rows(index_);
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
          states(index_)[head] = make_float2(sum.reference[c][e], sum.weights[c][e]);
        }
      }
    }
  }

  __device__ static int nth(unsigned mask, int n) {
    for (; n > 0; --n) mask &= mask - 1;
    return __ffs(static_cast<int>(mask)) - 1;
  }
  // Calls use(warp, head, channel) for every quad of channels of the items of `warps`, one a thread.
  template <class Use>
  __device__ __forceinline__ void for_quads(unsigned warps, const Closing* closings,
                                            const Use& use) const {
    constexpr int kQuads = kChannels / 4;
    const int heads = min(kHeads, params_.heads);
    const int count = __popc(warps) * heads * kQuads;
    for (int i = static_cast<int>(threadIdx.x); i < count; i += static_cast<int>(blockDim.x)) {
      const int row = i / kQuads;
      const int warp = nth(warps, row / heads);
      const int head = row % heads;
      if (head < closings[warp].heads) use(warp, head, 4 * (i % kQuads));
    }
  }

  struct Joint {
    float reference = kNoReference;
    float weights = 0;
    float4 row = {};

    template <int kCount>
    __device__ __forceinline__ void add(const float2 (&states)[kCount],
                                        const float4 (&rows)[kCount]) {
      float greatest = reference;
#pragma unroll
      for (int i = 0; i < kCount; ++i) greatest = fmaxf(greatest, states[i].x);
      const float mine = exp2_fast(reference - greatest);
      reference = greatest;
      weights *= mine;
      row.x *= mine, row.y *= mine, row.z *= mine, row.w *= mine;
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        const float factor = exp2_fast(states[i].x - greatest);
        weights += states[i].y * factor;
        row.x += rows[i].x * factor;
        row.y += rows[i].y * factor;
        row.z += rows[i].z * factor;
        row.w += rows[i].w * factor;
      }
    }
  };

  // Joins `count` results, some at a time so that their loads overlap. load(i, state, row).
  template <class Load>
  __device__ __forceinline__ static Joint join(int count, const Load& load) {
    constexpr int kTogether = 10;
    Joint joint;
    for (int first = 0; first < count; first += kTogether) {
      float2 states[kTogether];
      float4 rows[kTogether];
#pragma unroll
      for (int i = 0; i < kTogether; ++i) {
        load(min(first + i, count - 1), states[i], rows[i]);  // always, or they would not overlap
        if (first + i >= count) states[i] = make_float2(kNoReference, 0);
      }
      joint.add(states, rows);
    }
    return joint;
  }

  // The joint result of a group to its slot, or over the rows of its leader if nobody else has
  // anything of the item.
  __device__ void join_warps(int leader, int head, int channel) const {
    const Joint joint = join(group_size(leader), [&](int i, float2& state, float4& row) {
      state = states(leader + i)[head];
      row = *reinterpret_cast<const float4*>(rows(leader + i) + head * kStride + channel);
    });
    const Closing& closing = closings_[leader];
    const bool alone = closing.contributors.count(block_warps_) == 1;
    float* const partial = slot(first_warp_ + leader);
    float* const row = alone ? rows(leader) + head * kStride : partial + head * kChannels;
    *reinterpret_cast<float4*>(row + channel) = joint.row;
    if (channel == 0) {
      float2* const to = alone ? joint_states(leader)
                               : reinterpret_cast<float2*>(partial + closing.heads * kChannels);
      to[head] = make_float2(joint.reference, joint.weights);
    }
  }

  // All results of an item, from their slots to the region of `warp`.
  __device__ void join_blocks(const Closing& closing, int warp, int head, int channel) const {
    const Slots slots(closing.contributors, block_warps_, warps_);
    const int heads = closing.heads;
    const Joint joint = join(slots.count, [&](int i, float2& state, float4& row) {
      const float* const from = slot(slots[i]);
      state = __ldcg(reinterpret_cast<const float2*>(from + heads * kChannels + 2 * head));
      row = __ldcg(reinterpret_cast<const float4*>(from + head * kChannels + channel));
    });
    *reinterpret_cast<float4*>(rows(warp) + head * kStride + channel) = joint.row;
    if (channel == 0) joint_states(warp)[head] = make_float2(joint.reference, joint.weights);
  }

  // The joint results of `warps`, a head a warp, to the output.
  __device__ void write(unsigned warps, const Closing* closings) const {
    const int heads = min(kHeads, params_.heads);
    for (int i = index_; i < __popc(warps) * heads; i += block_warps_) {
      const int warp = nth(warps, i / heads);
      const int head = i % heads;
      if (head >= closings[warp].heads) continue;
      const float factor = inverse_or_zero(joint_states(warp)[head].y);
      float x[2 * kBlocks];  // channel 32 i + lane
#pragma unroll
      for (int k = 0; k < 2 * kBlocks; ++k) {
        x[k] = rows(warp)[head * kStride + 32 * k + lane_.index] * factor;
      }
      if (params_.value_rotation > 1) rotate(x);
      const std::int64_t row = (closings[warp].first_head + head) * params_.head_dim;
#pragma unroll
      for (int k = 0; k < 2 * kBlocks; ++k) {
        if (32 * k + lane_.index >= params_.head_dim) break;
        store_number(params_.output, params_.output_type, row + 32 * k + lane_.index, x[k]);
      }
    }
  }

  __device__ void rotate(float (&x)[2 * kBlocks]) const {
    const int length = params_.value_rotation;
    const float factor = rsqrtf(static_cast<float>(length));
#pragma unroll
    for (int i = 0; i < 2 * kBlocks; ++i) {
#pragma unroll
      for (int distance = 1; distance < 32; distance *= 2) {
        if (distance >= length) break;
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
  std::byte* regions_;
  Closing* closings_;
  int* flags_;
  int index_;  // of the warp in its block
  int block_warps_;
  int first_warp_;
  int warps_;
  Lane lane_;
};

}  // namespace kvq::cuda
