#include "kvq/cache/cuda/device.h"

namespace kvq::cuda {
namespace {

constexpr int kLowestMajor = 8;  // compute capability

}  // namespace

Result<std::shared_ptr<Device>> Device::open() {
  int devices = 0;
  if (const cudaError_t error = cudaGetDeviceCount(&devices); error != cudaSuccess || devices < 1) {
    return fail("--device cuda: no CUDA device: {}",
                error == cudaSuccess ? "none found" : cudaGetErrorString(error));
  }
  cudaDeviceProp properties{};
  KVQ_RETURN_IF_ERROR(check(cudaGetDeviceProperties(&properties, 0), "device 0"));
  if (properties.major < kLowestMajor) {
    return fail("--device cuda: {} has compute capability {}.{}: expected {}.0 or more",
                properties.name, properties.major, properties.minor, kLowestMajor);
  }
  std::shared_ptr<Device> device(new Device);
  device->name_ = properties.name;
  KVQ_RETURN_IF_ERROR(check(cudaSetDevice(0), properties.name));
  KVQ_RETURN_IF_ERROR(
      check(cudaStreamCreateWithFlags(&device->stream_, cudaStreamNonBlocking), "stream"));
  return device;
}

Device::~Device() {
  if (stream_ != nullptr) cudaStreamDestroy(stream_);
}

Status Device::synchronize() const { return check(cudaStreamSynchronize(stream_), "device work"); }

}  // namespace kvq::cuda
