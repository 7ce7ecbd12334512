#include "kvq/cache/cuda/device.h"

#include <algorithm>
#include <string>
#include <utility>

namespace kvq::cuda {
namespace {

constexpr int kLowestMajor = 8;  // compute capability

}  // namespace

Status check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return {};
  return fail("CUDA: {}: {}", what, cudaGetErrorString(error));
}

Result<DeviceArray> DeviceArray::create(std::size_t bytes) {
  DeviceArray array;
  KVQ_RETURN_IF_ERROR(array.reserve(bytes));
  return array;
}

DeviceArray::DeviceArray(DeviceArray&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}

DeviceArray& DeviceArray::operator=(DeviceArray&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(bytes_, other.bytes_);
  return *this;
}

DeviceArray::~DeviceArray() { cudaFree(data_); }

Status DeviceArray::reserve(std::size_t bytes) {
  bytes = std::max<std::size_t>(bytes, 1);
  if (bytes <= bytes_) return {};
  cudaFree(data_);
  data_ = nullptr;
  bytes_ = 0;
  if (cudaMalloc(&data_, bytes) != cudaSuccess) {
    std::ignore = cudaGetLastError();
    std::size_t available = 0;
    std::size_t total = 0;
    cudaMemGetInfo(&available, &total);
    return fail("the device has no memory for {} bytes: {} of {} are free", bytes, available,
                total);
  }
  bytes_ = bytes;
  return {};
}

PinnedArray::PinnedArray(PinnedArray&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}

PinnedArray& PinnedArray::operator=(PinnedArray&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(bytes_, other.bytes_);
  return *this;
}

PinnedArray::~PinnedArray() { cudaFreeHost(data_); }

Status PinnedArray::reserve(std::size_t bytes) {
  bytes = std::max<std::size_t>(bytes, 1);
  if (bytes <= bytes_) return {};
  cudaFreeHost(data_);
  data_ = nullptr;
  bytes_ = 0;
  KVQ_RETURN_IF_ERROR(check(cudaMallocHost(&data_, bytes), "memory for transfers"));
  bytes_ = bytes;
  return {};
}

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
