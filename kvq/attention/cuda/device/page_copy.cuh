// Brings units of work from memory to a warp's stages in shared memory, asynchronously, in order:
// one or two stages, used in turn.
//
// Where the architecture has it, one lane starts bulk copies that complete on a barrier in shared
// memory; the L2 is told to drop the lines first, since a step reads every page once. Elsewhere
// each lane copies its 16-byte pieces.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kvq/attention/cuda/device/fragments.cuh"

namespace kvq::cuda {

// For all lanes of a warp.
class PageCopy {
 public:
  // barriers: shared address of 16 bytes of the warp; buffer: of `stages` times `stage_bytes`,
  // 128-byte aligned.
  __device__ PageCopy(std::uint32_t barriers, std::uint32_t buffer, int stages, int stage_bytes,
                      Lane lane)
      : barriers_(barriers), buffer_(buffer), stage_bytes_(stage_bytes), lane_(lane) {
    last_stage_ = stages - 1;
#if __CUDA_ARCH__ >= 900
    if (lane.index == 0) {
      asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(barriers) : "memory");
      asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(barriers + 8) : "memory");
      asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    asm("createpolicy.fractional.L2::evict_first.b64 %0;" : "=l"(policy_));
    __syncwarp();
#endif
  }

  // Into the stage whose turn it is, if `starts`; all lanes are done with what was in it. bytes: a
  // multiple of 16.
  __device__ __forceinline__ void start(bool starts, const std::byte* source, int bytes) {
    if (starts) {
      expect(bytes);
      copy(source, bytes, 0);
      commit();
    }
    turn_start(starts);
  }
  // Two pieces of so many bytes, the second `offset` bytes into the stage.
  __device__ __forceinline__ void start_two(const std::byte* first, const std::byte* second,
                                            int bytes, int offset) {
    expect(2 * bytes);
    copy(first, bytes, 0);
    copy(second, bytes, offset);
    commit();
    turn_start(true);
  }
  // Between writing to a stage that is done with and starting a copy to it.
  __device__ __forceinline__ void order_writes() const {
#if __CUDA_ARCH__ >= 900
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
  }

  // Waits for the earliest unit not waited for yet; its shared address.
  __device__ __forceinline__ std::uint32_t wait() {
    const std::uint32_t unit = buffer_ + wait_stage_ * stage_bytes_;
#if __CUDA_ARCH__ >= 900
    asm volatile(
        "{\n.reg .pred p;\n"
        "again:\n"
        "mbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n"
        "@!p bra.uni again;\n}" ::"r"(barriers_ + 8 * wait_stage_),
        "r"(parity_)
        : "memory");
#else
    if (in_flight_ > 1) {
      asm volatile("cp.async.wait_group 1;" ::: "memory");
    } else {
      asm volatile("cp.async.wait_group 0;" ::: "memory");
    }
    __syncwarp();
    --in_flight_;
#endif
    wait_stage_ ^= last_stage_;
    parity_ ^= wait_stage_ ^ 1U;
    return unit;
  }

 private:
#if __CUDA_ARCH__ >= 900
  __device__ __forceinline__ void expect(int bytes) const {
    if (lane_.index != 0) return;
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barriers_ +
                                                                                8 * start_stage_),
                 "r"(bytes)
                 : "memory");
  }
  __device__ __forceinline__ void copy(const std::byte* source, int bytes, int offset) const {
    if (lane_.index != 0) return;
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint "
        "[%0], [%1], %2, [%3], %4;" ::"r"(buffer_ + start_stage_ * stage_bytes_ + offset),
        "l"(source), "r"(bytes), "r"(barriers_ + 8 * start_stage_), "l"(policy_)
        : "memory");
  }
  __device__ __forceinline__ void commit() {}
#else
  __device__ __forceinline__ void expect(int) const {}
  __device__ __forceinline__ void copy(const std::byte* source, int bytes, int offset) const {
    const std::uint32_t destination = buffer_ + start_stage_ * stage_bytes_ + offset;
    for (int at = 16 * lane_.index; at < bytes; at += 16 * 32) {
      asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(destination + at),
                   "l"(source + at)
                   : "memory");
    }
  }
  __device__ __forceinline__ void commit() {
    asm volatile("cp.async.commit_group;" ::: "memory");
    ++in_flight_;
  }
  int in_flight_ = 0;
#endif
  __device__ __forceinline__ void turn_start(bool starts) {
    start_stage_ ^= starts ? last_stage_ : 0;
  }

  std::uint32_t barriers_;
  std::uint32_t buffer_;
  int stage_bytes_;
  Lane lane_;
  std::uint32_t last_stage_;
  std::uint32_t start_stage_ = 0;
  std::uint32_t wait_stage_ = 0;
  std::uint32_t parity_ = 0;
  std::uint64_t policy_;
};

}  // namespace kvq::cuda
