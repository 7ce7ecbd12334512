// The current CUDA device: its stream, and memory that is returned when its owner goes.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <memory>
#include <string>

#include "kvq/base/status.h"

namespace kvq::cuda {

// `what` opens the message.
Status check(cudaError_t error, const char* what);

// Device memory, 256-byte aligned, not initialized.
class DeviceArray {
 public:
  static Result<DeviceArray> create(std::size_t bytes);

  DeviceArray() = default;
  DeviceArray(DeviceArray&& other) noexcept;
  DeviceArray& operator=(DeviceArray&& other) noexcept;
  ~DeviceArray();

  std::size_t bytes() const { return bytes_; }
  template <typename T = std::byte>
  T* as() const {
    return static_cast<T*>(data_);
  }
  // Keeps what there is, if it is enough.
  Status reserve(std::size_t bytes);

 private:
  void* data_ = nullptr;
  std::size_t bytes_ = 0;
};

// Host memory that the device copies from and to without a detour.
class PinnedArray {
 public:
  PinnedArray() = default;
  PinnedArray(PinnedArray&& other) noexcept;
  PinnedArray& operator=(PinnedArray&& other) noexcept;
  ~PinnedArray();

  std::size_t bytes() const { return bytes_; }
  template <typename T = std::byte>
  T* as() const {
    return static_cast<T*>(data_);
  }
  // Keeps what there is, if it is enough; otherwise the content is lost.
  Status reserve(std::size_t bytes);

 private:
  void* data_ = nullptr;
  std::size_t bytes_ = 0;
};

// All work of an engine is ordered by one stream.
class Device {
 public:
  // Device 0. Fails, with the reason, where there is none that the kernels were compiled for.
  static Result<std::shared_ptr<Device>> open();
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;
  ~Device();

  cudaStream_t stream() const { return stream_; }
  const std::string& name() const { return name_; }
  Status synchronize() const;

 private:
  Device() = default;

  cudaStream_t stream_ = nullptr;
  std::string name_;
};

}  // namespace kvq::cuda
