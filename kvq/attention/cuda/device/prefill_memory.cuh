// Where everything lies in a block's shared memory: slots of keys, slots of values, queries that
// products read from there, raw buffers of keys and of values, barriers.
#pragma once

#include <cstddef>

#include "kvq/attention/cuda/device/prefill_barrier.cuh"
#include "kvq/attention/cuda/device/prefill_fetch.cuh"

namespace kvq::cuda {

inline constexpr int kMaxGroups = 2;

// Shared addresses.
struct PrefillMemory {
  std::uint32_t keys;
  std::uint32_t values;
  std::uint32_t query;  // of multiplying warpgroups that keep it there
  std::uint32_t raw_keys;
  std::uint32_t raw_values;
  std::uint32_t key_barriers;
  std::uint32_t value_barriers;
  std::uint32_t raw_key_barriers;  // 8 bytes each
  std::uint32_t raw_value_barriers;
  int slot_bytes;

  __device__ PrefillMemory(const PrefillParams& params, const std::byte* shared, int bytes)
      : keys(static_cast<std::uint32_t>(__cvta_generic_to_shared(shared))),
        values(keys + params.slots * bytes),
        query(values + params.slots * bytes),
        raw_keys(query + params.query_bytes),
        raw_values(raw_keys + params.raw_buffers * params.raw_bytes),
        key_barriers(raw_values + params.raw_buffers * params.raw_bytes),
        value_barriers(key_barriers + kSlotBarrierBytes * params.slots),
        raw_key_barriers(value_barriers + kSlotBarrierBytes * params.slots),
        raw_value_barriers(raw_key_barriers + 8 * params.raw_buffers),
        slot_bytes(bytes) {}
};

template <int kGroups>
__device__ __forceinline__ void prepare_memory(const PrefillParams& params,
                                               const PrefillMemory& memory) {
  const std::uint32_t thread = threadIdx.x;
  if (params.head_dim != memory.slot_bytes / kTileBlockBytes * 64) {
    // What no unit writes meets zeros of a query, or weights of no output.
    for (std::uint32_t at = memory.keys + 16 * thread; at < memory.raw_keys;
         at += 16 * blockDim.x) {
      store_shared_16(at, uint4{});
    }
    publish_to_products();
  }
  if (thread < static_cast<std::uint32_t>(2 * params.slots)) {
    const std::uint32_t barriers = memory.key_barriers + kSlotBarrierBytes * thread;
    Barrier{barriers}.init(kUnpackWarps);
    Barrier{barriers + 8}.init(4 * kGroups);
  }
  if (thread < static_cast<std::uint32_t>(2 * params.raw_buffers)) {
    Barrier{memory.raw_key_barriers + 8 * thread}.init(1);
  }
  __syncthreads();
}

}  // namespace kvq::cuda
