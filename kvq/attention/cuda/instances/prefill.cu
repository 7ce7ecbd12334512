#include "kvq/attention/cuda/device/prefill_kernel.cuh"
#include "kvq/attention/cuda/kernels.h"

namespace kvq::cuda {
namespace {

template <int kBlocks, int kGroups>
PrefillKernel instance() {
  return {reinterpret_cast<const void*>(&prefill_kernel<kBlocks, kGroups>), 128 * (kGroups + 2),
          64 * kGroups, kBlocks * kTileBlockBytes,
          kQueryInRegisters<kBlocks> ? 0 : kGroups * kBlocks * kTileBlockBytes};
}

}  // namespace

PrefillKernel prefill_kernel_of(int head_blocks) {
  if (head_blocks == 1) return instance<1, 2>();
  if (head_blocks == 2) return instance<2, 2>();
  return instance<4, 1>();
}

}  // namespace kvq::cuda
