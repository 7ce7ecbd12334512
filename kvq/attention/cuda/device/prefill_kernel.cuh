// The prefill kernel: a block for each tile of query rows of one kv head.
//
// One warpgroup unpacks keys, one unpacks values, the others multiply. Unpacked tiles live in
// shared memory only, in two rings of slots for the keys and the values of one unit (64 positions)
// each:
//
//   memory ──► raw buffers ──► slots K K .., V V .. ──► S = Q K, P = 2^(S - r), O += P V
//         copies        unpack, fp16        products of 64 rows a warpgroup, in registers
//
// Units come in one order: pages first, in whose terms queries and sums are rotated, then exact
// rows. In between the sums are rotated back and the queries loaded anew.
//
// A multiplying warpgroup starts the scores of a unit together with the values of the last one, and
// turns the scores into weights while the values are multiplied.
//
// Cost of a k4v2 page and 128 rows x 128 channels, clocks of a multiprocessor: products 1,024 with
// wgmma, 2,048 with mma.sync; 512 for exponentials. Instructions: 8 warps x 260 that multiply, 8 x
// 200 that unpack, of 4 a clock.
//
// prefill_memory.cuh says what lies where in shared memory.
#pragma once

#include "kvq/attention/cuda/device/prefill_consumer.cuh"
#include "kvq/attention/cuda/device/prefill_producer.cuh"

namespace kvq::cuda {

// Registers of a thread after the launch's even share has been split anew: more for products, fewer
// for unpacking. With one multiplying warpgroup there are more of them to share.
template <int kGroups, bool kMultiplies>
__device__ __forceinline__ void set_registers() {
#if KVQ_WARPGROUP_PRODUCTS
  if constexpr (kMultiplies) {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kGroups == 2 ? 184 : 240));
  } else {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kGroups == 2 ? 72 : 128));
  }
#endif
}

// kBlocks: 64 channels each. kGroups: multiplying warpgroups, 64 rows each.
template <int kBlocks, int kGroups>
__global__ __launch_bounds__(128 * (kGroups + 2),
                             1) void prefill_kernel(const __grid_constant__ PrefillParams params) {
  static_assert(kQueryInRegisters<kBlocks> || kGroups == 1);
  extern __shared__ __align__(1024) std::byte shared[];
  const int block = static_cast<int>(blockIdx.x);
  const PrefillTile tile = find_tile(params, block / params.kv_heads, 64 * kGroups,
                                     block % params.kv_heads, this_lane());
  if (tile.sequence < 0) return;
  const PrefillMemory memory(params, shared, kBlocks * kTileBlockBytes);
  prepare_memory<kGroups>(params, memory);

  const int group = static_cast<int>(threadIdx.x / 128);
  if (group < kGroups) {
    set_registers<kGroups, true>();
    PrefillConsumer<kBlocks>(params, tile, memory, group).run();
  } else {
    set_registers<kGroups, false>();
    if (group == kGroups) {
      PrefillProducer<kBlocks, true>(params, tile, memory).run();
    } else {
      PrefillProducer<kBlocks, false>(params, tile, memory).run();
    }
  }
}

}  // namespace kvq::cuda
