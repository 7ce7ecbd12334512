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

// Shared memory before the warps' regions: for each of 16 warps two barriers of 8 bytes, a flag
// that it passed an item, its cut, and the closings of the item that it ends with and of the passed
// one.
inline constexpr int kSharedFlags = 256;
inline constexpr int kSharedCuts = 384;
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

// Counts one more partial result of a head in memory; true for the last one, whose warp may then
// read the others. Called by one lane between two barriers of its warp, it speaks for all of the
// warp.
__device__ __forceinline__ bool arrive(ItemCounter& counter, int head, int expected) {
  std::uint32_t before;
  asm volatile("atom.add.acq_rel.gpu.global.u32 %0, [%1], 1;"
               : "=r"(before)
               : "l"(&counter.arrivals[head])
               : "memory");
  const bool last = before + 1 == static_cast<std::uint32_t>(expected);
  if (last) {
    counter.arrivals[head] = 0;
    if (head == 0) counter.claims = 0;  // a warp arrives after its last claim
  }
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
        first_block(divide(contributors.first, warps_per_block)),
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

// The results of all warps of a block, whose last items may differ: warps of one item are
// neighbours, a group. After one barrier a task, a head of a group, is a warp's alone: it joins the
// group's rows, and if others have results of the item, too, leaves the sum in its slot and counts
// it; the last to be counted joins the slots. A lane has 2 * kBlocks channels, one after the other.
//
// Shared memory of a warp: rows [heads][channels + 8] (the 8 keep the lanes' stores apart), then
// {reference, sum} of each head.
template <int kBlocks, int kColumns>
class BlockResult {
 public:
  static constexpr int kChannels = 64 * kBlocks;
  static constexpr int kStride = kChannels + 8;
  static constexpr int kHeads = kHeadTile * kColumns;
  static constexpr int kBytes = 4 * (kHeads * kStride + 2 * kHeads);

  __device__ BlockResult(const DecodeParams& params, std::byte* shared, Lane lane)
      : params_(params),
        regions_(shared + kSharedHeader),
        closings_(reinterpret_cast<Closing*>(shared + kSharedClosings)),
        flags_(reinterpret_cast<int*>(shared + kSharedFlags)),
        index_(static_cast<int>(threadIdx.x / 32)),
        block_warps_(static_cast<int>(blockDim.x / 32)),
        first_warp_(static_cast<int>(blockIdx.x) * block_warps_),
        lane_(lane) {}

  // Every warp has written its closing. passed: this warp has left the result of an item that
  // others have results of, too, in its slot.
  __device__ void finish(bool passed, const SoftmaxSum<kBlocks, kColumns>& sum) {
    deposit(sum);
    if (lane_.index == 0) flags_[index_] = passed ? 1 : 0;
    __syncthreads();
    const unsigned leaders = ballot_warps([&](int warp) { return leader_of(warp) == warp; });
    const unsigned passing = ballot_warps([&](int warp) { return flags_[warp] != 0; });
    const int heads = min(kHeads, params_.heads);
    const int tasks = (__popc(leaders) + __popc(passing)) * heads;
#pragma unroll 1
    for (int i = index_; i < tasks; i += block_warps_) {
      const Task task = task_of(i, leaders, passing, heads);
      if (!task.passed && task.head < closings_[task.closing].heads) join_group(task);
    }
    __syncwarp();
    // All arrivals of a warp at once; it has at most 2 * kHeads tasks.
    bool last = false;
    const int own = index_ + lane_.index * block_warps_;
    if (own < tasks) {
      const Task task = task_of(own, leaders, passing, heads);
      const Closing& closing = closings_[task.closing];
      const int count = closing.contributors.count(block_warps_);
      if (task.head < closing.heads && count > 1) {
        last = arrive(params_.counters[closing.item], task.head, count);
      }
    }
    unsigned complete = __ballot_sync(0xffffffffU, last);
#pragma unroll 1
    for (; complete != 0; complete &= complete - 1) {
      const int i = index_ + (__ffs(static_cast<int>(complete)) - 1) * block_warps_;
      join_slots(task_of(i, leaders, passing, heads));
    }
  }

 private:
  struct Task {
    int closing;  // index
    int head;
    bool passed;
  };
  struct Joint {
    float reference = kNoReference;
    float weights = 0;
    float row[2 * kBlocks] = {};

    __device__ __forceinline__ void add(const Joint& other) {
      const float greatest = fmaxf(reference, other.reference);
      const float mine = exp2_fast(reference - greatest);
      const float others = exp2_fast(other.reference - greatest);
      reference = greatest;
      weights = weights * mine + other.weights * others;
#pragma unroll
      for (int k = 0; k < 2 * kBlocks; ++k) row[k] = row[k] * mine + other.row[k] * others;
    }
  };

  // The warps of the block for which test(warp) holds.
  template <class Test>
  __device__ __forceinline__ unsigned ballot_warps(const Test& test) const {
    return __ballot_sync(0xffffffffU, lane_.index < block_warps_ && test(lane_.index));
  }
  __device__ static int nth(unsigned mask, int n) {
#pragma unroll 1
    for (; n > 0; --n) mask &= mask - 1;
    return __ffs(static_cast<int>(mask)) - 1;
  }
  // The heads of the first leader, those of the second, .., likewise of the passing warps.
  __device__ Task task_of(int number, unsigned leaders, unsigned passing, int heads) const {
    const int row = divide(number, heads);
    const int groups = __popc(leaders);
    const bool passed = row >= groups;
    const int warp = passed ? nth(passing, row - groups) : nth(leaders, row);
    return {passed ? 16 + warp : warp, number - row * heads, passed};
  }
  // The first warp of the block with the same last item.
  __device__ int leader_of(int warp) const {
    return max(closings_[warp].contributors.first - first_warp_, 0);
  }
  __device__ int group_size(int leader) const {
    const int last = closings_[leader].contributors.last - first_warp_;
    return min(last, block_warps_ - 1) - leader + 1;
  }

  __device__ float* rows(int warp) const {
    return reinterpret_cast<float*>(regions_ + warp * params_.region_bytes);
  }
  __device__ float2* states(int warp) const {
    return reinterpret_cast<float2*>(rows(warp) + kHeads * kStride);
  }
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

  // The lane's channels from `from`, the row's first.
  __device__ __forceinline__ void load_channels(const float* from,
                                                float (&numbers)[2 * kBlocks]) const {
    if constexpr (kBlocks == 1) {
      const float2 pair = *reinterpret_cast<const float2*>(from + channel());
      numbers[0] = pair.x, numbers[1] = pair.y;
    } else {
#pragma unroll
      for (int k = 0; k < 2 * kBlocks; k += 4) {
        const float4 four = *reinterpret_cast<const float4*>(from + channel() + k);
        numbers[k] = four.x, numbers[k + 1] = four.y;
        numbers[k + 2] = four.z, numbers[k + 3] = four.w;
      }
    }
  }

  // Joins up to 32 results of a head. offset: of result `lane`, from `results`; row, state: of a
  // result's row and {reference, weights} from there; all in floats. One body for shared memory and
  // slots: code that runs once has to be fetched first.
  __device__ __noinline__ Joint join(const float* results, int count, int offset, int row,
                                     int state) const {
    constexpr int kTogether = kBlocks <= 2 ? 16 : 8;  // so that their loads overlap
    float2 own = make_float2(kNoReference, 0);
    if (lane_.index < count) own = *reinterpret_cast<const float2*>(results + offset + state);
    Joint joint;
    float factor = 0;
#pragma unroll 1
    for (int first = 0; first < count; first += kTogether) {
      float numbers[kTogether][2 * kBlocks];
#pragma unroll
      for (int i = 0; i < kTogether; ++i) {
        const int other = __shfl_sync(0xffffffffU, offset, min(first + i, count - 1));
        load_channels(results + other + row, numbers[i]);
      }
      if (first == 0) {
        joint.reference = greatest_of_warp(own.x);
        if (lane_.index < count) factor = exp2_fast(own.x - joint.reference);
      }
#pragma unroll
      for (int i = 0; i < kTogether; ++i) {
        const float other = __shfl_sync(0xffffffffU, factor, first + i);
        joint.weights += __shfl_sync(0xffffffffU, own.y, first + i) * other;
#pragma unroll
        for (int k = 0; k < 2 * kBlocks; ++k) joint.row[k] += numbers[i][k] * other;
      }
    }
    return joint;
  }
  __device__ static float greatest_of_warp(float number) {
    // As integers, negative numbers compare the wrong way round.
    const auto turned = [](int bits) { return bits ^ ((bits >> 31) & 0x7fffffff); };
    return __int_as_float(turned(__reduce_max_sync(0xffffffffU, turned(__float_as_int(number)))));
  }

  // The block's results of a head, to the output or to the block's slot.
  __device__ __forceinline__ void join_group(const Task& task) const {
    const int leader = task.closing;
    const Joint joint =
        join(rows(leader), group_size(leader), lane_.index * (params_.region_bytes / 4),
             task.head * kStride, kHeads * kStride + 2 * task.head);
    const Closing& closing = closings_[leader];
    if (closing.contributors.count(block_warps_) == 1) {
      if (task.head == 0 && lane_.index == 0) params_.counters[closing.item].claims = 0;
      write(joint, closing.first_head + task.head);
      return;
    }
    float* const partial = slot(first_warp_ + leader);
#pragma unroll
    for (int k = 0; k < 2 * kBlocks; k += 2) {
      *reinterpret_cast<float2*>(partial + task.head * kChannels + channel() + k) =
          make_float2(joint.row[k], joint.row[k + 1]);
    }
    if (lane_.index == 0) {
      *reinterpret_cast<float2*>(partial + closing.heads * kChannels + 2 * task.head) =
          make_float2(joint.reference, joint.weights);
    }
  }

  // All results of a head, from their slots to the output.
  __device__ __forceinline__ void join_slots(const Task& task) const {
    const Closing& closing = closings_[task.closing];
    const Slots slots(closing.contributors, block_warps_, params_.warps.number);
    Joint joint;
#pragma unroll 1
    for (int first = 0; first < slots.count; first += 32) {
      joint.add(join(params_.partials, min(slots.count - first, 32),
                     slots[first + lane_.index] * params_.partial_floats, task.head * kChannels,
                     closing.heads * kChannels + 2 * task.head));
    }
    write(joint, closing.first_head + task.head);
  }

  // The lane's first channel.
  __device__ int channel() const { return 2 * kBlocks * lane_.index; }

  // One body for both callers: code that runs once has to be fetched first.
  __device__ __noinline__ void write(Joint joint, std::int64_t output_head) const {
    const float factor = inverse_or_zero(joint.weights);
#pragma unroll
    for (int k = 0; k < 2 * kBlocks; ++k) joint.row[k] *= factor;
    if (params_.value_rotation > 1) rotate(joint.row);
    const std::int64_t index = output_head * params_.head_dim + channel();
#pragma unroll
    for (int k = 0; k < 2 * kBlocks; ++k) {
      if (channel() + k >= params_.head_dim) break;
      store_number(params_.output, params_.output_type, index + k, joint.row[k]);
    }
  }

  __device__ void rotate(float (&x)[2 * kBlocks]) const {
    const int length = params_.value_rotation;
    const float factor = rsqrtf(static_cast<float>(length));
#pragma unroll
    for (int distance = 1; distance < 2 * kBlocks; distance *= 2) {
#pragma unroll
      for (int k = 0; k < 2 * kBlocks; ++k) {
        if (k & distance) continue;
        const float sum = x[k] + x[k + distance];
        x[k + distance] = x[k] - x[k + distance];
        x[k] = sum;
      }
    }
#pragma unroll 1
    for (int distance = 1; 2 * kBlocks * distance < length; distance *= 2) {
#pragma unroll
      for (int k = 0; k < 2 * kBlocks; ++k) {
        const float other = __shfl_xor_sync(0xffffffffU, x[k], distance);
        x[k] = (lane_.index & distance) ? other - x[k] : x[k] + other;
      }
    }
#pragma unroll
    for (int k = 0; k < 2 * kBlocks; ++k) x[k] *= factor;
  }

  const DecodeParams& params_;
  std::byte* regions_;
  Closing* closings_;
  int* flags_;
  int index_;  // of the warp in its block
  int block_warps_;
  int first_warp_;
  Lane lane_;
};

}  // namespace kvq::cuda
