// Barriers of warpgroups, barriers in shared memory, and a ring of slots guarded by these.
#pragma once

#include <cstdint>

namespace kvq::cuda {

// Shared address of 8 bytes.
struct Barrier {
  std::uint32_t address;

  __device__ void init(int arrivals) const {
    asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(address), "r"(arrivals) : "memory");
#if __CUDA_ARCH__ >= 900
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#endif
  }
  __device__ void arrive() const {
    asm volatile("{\n.reg .b64 state;\nmbarrier.arrive.shared.b64 state, [%0];\n}" ::"r"(address)
                 : "memory");
  }
#if __CUDA_ARCH__ >= 900
  // Arrives; the phase then lasts until `bytes` more have been copied, too.
  __device__ void expect(int bytes) const {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(address), "r"(bytes)
                 : "memory");
  }
#endif
  // Waits until the phase of this parity is over.
  __device__ void wait(std::uint32_t parity) const {
    std::uint32_t done = 0;
    while (done == 0) {
#if __CUDA_ARCH__ >= 900
      asm volatile(
          "{\n.reg .pred p;\n"
          "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
          "selp.u32 %0, 1, 0, p;\n}"
          : "=r"(done)
          : "r"(address), "r"(parity)
          : "memory");
#else
      asm volatile(
          "{\n.reg .pred p;\n"
          "mbarrier.test_wait.parity.shared.b64 p, [%1], %2;\n"
          "selp.u32 %0, 1, 0, p;\n}"
          : "=r"(done)
          : "r"(address), "r"(parity)
          : "memory");
#endif
    }
  }
};

// Barriers of the hardware, each of one warpgroup; number 0 is the whole block's.
enum class GroupBarrier : int { kKeys = 1, kValues = 2, kQueries = 3 };

template <GroupBarrier kBarrier>
__device__ __forceinline__ void synchronize_group() {
  __syncwarp();
  asm volatile("bar.sync %0, 128;" ::"n"(static_cast<int>(kBarrier)) : "memory");
}

inline constexpr int kSlotBarrierBytes = 16;

// A place in the ring. Producers fill slots and consumers release them in the same order.
class Ring {
 public:
  // barriers: shared address of kSlotBarrierBytes a slot.
  __device__ Ring(std::uint32_t barriers, int slots) : barriers_(barriers), slots_(slots) {}

  __device__ Barrier filled() const { return {barriers_ + kSlotBarrierBytes * index_}; }
  __device__ Barrier released() const { return {barriers_ + kSlotBarrierBytes * index_ + 8}; }
  __device__ int index() const { return index_; }

  __device__ void wait_filled() const { filled().wait(parity_); }
  // Passes at once in the first round.
  __device__ void wait_released() const { released().wait(parity_ ^ 1); }
  __device__ void advance() {
    if (++index_ == slots_) {
      index_ = 0;
      parity_ ^= 1;
    }
  }

 private:
  std::uint32_t barriers_;
  int slots_;
  int index_ = 0;
  std::uint32_t parity_ = 0;
};

}  // namespace kvq::cuda
