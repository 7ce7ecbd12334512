// Brings pages from memory to a warp's buffer in shared memory, asynchronously.
//
// Where the architecture has it, one lane starts one bulk copy that completes on a barrier in shared
// memory; the L2 is told to drop the lines first, since a step reads every page once. Elsewhere each
// lane copies its 16-byte pieces.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kvq/attention/cuda/device/fragments.cuh"

namespace kvq::cuda {

#if __CUDA_ARCH__ >= 900

class PageCopy {
 public:
  // barrier: shared address of 8 bytes of the warp.
  __device__ PageCopy(std::uint32_t barrier, Lane lane) : barrier_(barrier), lane_(lane) {
    if (lane.index == 0) {
      asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(barrier) : "memory");
      asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    asm("createpolicy.fractional.L2::evict_first.b64 %0;" : "=l"(policy_));
    __syncwarp();
  }

  // destination: shared address, 128-byte aligned; bytes: a multiple of 16. All lanes are done
  // with what was there.
  __device__ void start(std::uint32_t destination, const std::byte* source, int bytes) {
    if (lane_.index != 0) return;
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier_),
                 "r"(bytes)
                 : "memory");
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint "
        "[%0], [%1], %2, [%3], %4;" ::"r"(destination),
        "l"(source), "r"(bytes), "r"(barrier_), "l"(policy_)
        : "memory");
  }

  __device__ void wait() {
    std::uint32_t done = 0;
    while (done == 0) {
      asm volatile(
          "{\n.reg .pred p;\n"
          "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
          "selp.u32 %0, 1, 0, p;\n}"
          : "=r"(done)
          : "r"(barrier_), "r"(parity_)
          : "memory");
    }
    parity_ ^= 1;
  }

 private:
  std::uint32_t barrier_;
  std::uint32_t parity_ = 0;
  Lane lane_;
  std::uint64_t policy_;
};

#else

class PageCopy {
 public:
  __device__ PageCopy(std::uint32_t, Lane lane) : lane_(lane) {}

  __device__ void start(std::uint32_t destination, const std::byte* source, int bytes) {
    for (int offset = 16 * lane_.index; offset < bytes; offset += 16 * 32) {
      asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(destination + offset),
                   "l"(source + offset)
                   : "memory");
    }
    asm volatile("cp.async.commit_group;" ::: "memory");
  }

  __device__ void wait() {
    asm volatile("cp.async.wait_group 0;" ::: "memory");
    __syncwarp();
  }

 private:
  Lane lane_;
};

#endif

}  // namespace kvq::cuda
