// Launches that overlap: a kernel is brought to the multiprocessors while the one before still
// runs, and waits there for what that one writes. Starting is a good part of what kernels of a few
// microseconds cost, as those of a decode step are.
//
// Every such kernel calls both functions before its first access to memory that another kernel of
// the stream writes: that each waits for the one before orders all of them.
#pragma once

#include <cuda_runtime.h>

namespace kvq::cuda {

// What the kernel before may still write is read from here on.
__device__ __forceinline__ void wait_for_kernel_before() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
// The kernel behind may be brought to multiprocessors that are free, where it waits.
__device__ __forceinline__ void allow_kernel_behind() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// Of the current device: from compute capability 9.0 on.
inline bool overlaps_launches() {
  static const bool overlaps = [] {
    int device = 0;
    int major = 0;
    cudaGetDevice(&device);
    cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
    return major >= 9;
  }();
  return overlaps;
}

template <typename Call>
cudaError_t launch_overlapped(void (*kernel)(Call), dim3 blocks, int threads, const Call& call,
                              cudaStream_t stream) {
  cudaLaunchAttribute overlap{};
  overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  overlap.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = blocks;
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.stream = stream;
  config.attrs = &overlap;
  config.numAttrs = overlaps_launches() ? 1 : 0;
  return cudaLaunchKernelEx(&config, kernel, call);
}

}  // namespace kvq::cuda
