#include "kvq/cache/cuda/device.h"

namespace kvq::cuda {
namespace {

constexpr int kLowestMajor = 8;  // compute capability

}  // namespace

Status Device::check_properties(int index) {
  cudaDeviceProp properties{};
  KVQ_RETURN_IF_ERROR(check(cudaGetDeviceProperties(&properties, index), "device"));
  name_ = properties.name;
  if (properties.major >= kLowestMajor) return {};
  return fail("--device cuda: {} has compute capability {}.{}: expected {}.0 or more", name_,
              properties.major, properties.minor, kLowestMajor);
}

Result<std::shared_ptr<Device>> Device::open() {
  int devices = 0;
  if (const cudaError_t error = cudaGetDeviceCount(&devices); error != cudaSuccess || devices < 1) {
    return fail("--device cuda: no CUDA device: {}",
                error == cudaSuccess ? "none found" : cudaGetErrorString(error));
  }
  std::shared_ptr<Device> device(new Device);
  KVQ_RETURN_IF_ERROR(device->check_properties(0));
  KVQ_RETURN_IF_ERROR(check(cudaSetDevice(0), device->name().c_str()));
  KVQ_RETURN_IF_ERROR(
      check(cudaStreamCreateWithFlags(&device->stream_, cudaStreamNonBlocking), "stream"));
  return device;
}

Result<std::shared_ptr<Device>> Device::of_caller(int index) {
  std::shared_ptr<Device> device(new Device);
  KVQ_RETURN_IF_ERROR(device->check_properties(index));
  KVQ_RETURN_IF_ERROR(
      check(cudaEventCreateWithFlags(&device->switched_, cudaEventDisableTiming), "event"));
  return device;
}

Device::~Device() {
  if (switched_ != nullptr) {
    cudaEventDestroy(switched_);
  } else if (stream_ != nullptr) {
    cudaStreamDestroy(stream_);
  }
}

Status Device::use_stream(cudaStream_t stream) {
  if (stream == stream_) return {};
  KVQ_RETURN_IF_ERROR(check(cudaEventRecord(switched_, stream_), "stream"));
  KVQ_RETURN_IF_ERROR(check(cudaStreamWaitEvent(stream, switched_, 0), "stream"));
  stream_ = stream;
  return {};
}

Status Device::synchronize() const { return check(cudaStreamSynchronize(stream_), "device work"); }

}  // namespace kvq::cuda
