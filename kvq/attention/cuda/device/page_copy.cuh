// Brings pages from memory to a warp's buffers in shared memory, asynchronously, in order: one or
// two stages, used in turn.
//
// Where the architecture has it, one lane starts one bulk copy that completes on a barrier in
// shared memory; the L2 is told to drop the lines first, since a step reads every page once.
// Elsewhere each lane copies its 16-byte pieces.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kvq/attention/cuda/device/fragments.cuh"

namespace kvq::cuda {

// Which of the stages comes next, and how often it was used before.
class StageTurn {
 public:
  __device__ explicit StageTurn(int stages) : two_(stages == 2) {}
  __device__ int stage() const { return two_ ? count_ & 1 : 0; }
  __device__ std::uint32_t parity() const { return (two_ ? count_ >> 1 : count_) & 1; }
  __device__ void next() { ++count_; }
  __device__ int count() const { return count_; }

 private:
  bool two_;
  int count_ = 0;
};

// For all lanes of a warp.
class PageCopy {
 public:
  // barriers: shared address of 16 bytes of the warp; buffer: of `stages` times `bytes`, 128-byte
  // aligned; bytes: of a page, a multiple of 128.
  __device__ PageCopy(std::uint32_t barriers, std::uint32_t buffer, int stages, int bytes,
                      Lane lane)
      : barriers_(barriers),
        buffer_(buffer),
        bytes_(bytes),
        lane_(lane),
        started_(stages),
        waited_(stages) {
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

  // All lanes are done with what was in the stage.
  __device__ __forceinline__ void start(const std::byte* source) {
    const std::uint32_t destination = buffer_ + started_.stage() * bytes_;
#if __CUDA_ARCH__ >= 900
    if (lane_.index == 0) {
      const std::uint32_t barrier = barriers_ + 8 * started_.stage();
      asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier),
                   "r"(bytes_)
                   : "memory");
      asm volatile(
          "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint "
          "[%0], [%1], %2, [%3], %4;" ::"r"(destination),
          "l"(source), "r"(bytes_), "r"(barrier), "l"(policy_)
          : "memory");
    }
#else
    for (int offset = 16 * lane_.index; offset < bytes_; offset += 16 * 32) {
      asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(destination + offset),
                   "l"(source + offset)
                   : "memory");
    }
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
    started_.next();
  }

  // Waits for the earliest page not waited for yet; its shared address.
  __device__ __forceinline__ std::uint32_t wait() {
    const std::uint32_t page = buffer_ + waited_.stage() * bytes_;
#if __CUDA_ARCH__ >= 900
    std::uint32_t done = 0;
    while (done == 0) {
      asm volatile(
          "{\n.reg .pred p;\n"
          "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
          "selp.u32 %0, 1, 0, p;\n}"
          : "=r"(done)
          : "r"(barriers_ + 8 * waited_.stage()), "r"(waited_.parity())
          : "memory");
    }
#else
    if (started_.count() - waited_.count() > 1) {
      asm volatile("cp.async.wait_group 1;" ::: "memory");
    } else {
      asm volatile("cp.async.wait_group 0;" ::: "memory");
    }
    __syncwarp();
#endif
    waited_.next();
    return page;
  }

 private:
  std::uint32_t barriers_;
  std::uint32_t buffer_;
  int bytes_;
  Lane lane_;
  StageTurn started_;
  StageTurn waited_;
  std::uint64_t policy_;
};

}  // namespace kvq::cuda
