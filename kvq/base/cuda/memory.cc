#include "kvq/base/cuda/memory.h"

#include <tuple>

namespace kvq::cuda {

Status check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return {};
  return fail("CUDA: {}: {}", what, cudaGetErrorString(error));
}

Status DeviceSpace::allocate(std::size_t bytes, void*& data) {
  if (cudaMalloc(&data, bytes) == cudaSuccess) return {};
  std::ignore = cudaGetLastError();
  data = nullptr;
  std::size_t available = 0;
  std::size_t total = 0;
  cudaMemGetInfo(&available, &total);
  return fail("the device has no memory for {} bytes: {} of {} are free", bytes, available, total);
}

void DeviceSpace::release(void* data) { cudaFree(data); }

Status PinnedSpace::allocate(std::size_t bytes, void*& data) {
  return check(cudaMallocHost(&data, bytes), "memory for transfers");
}

void PinnedSpace::release(void* data) { cudaFreeHost(data); }

}  // namespace kvq::cuda
