// Errors of CUDA calls, and memory that is returned when its owner goes.
#pragma once

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstddef>
#include <utility>

#include "kvq/base/status.h"

namespace kvq::cuda {

// `what` opens the message.
Status check(cudaError_t error, const char* what);

// Memory of the current device, 256-byte aligned.
struct DeviceSpace {
  static Status allocate(std::size_t bytes, void*& data);
  static void release(void* data);
};

// Host memory that the device copies from and to without a detour.
struct PinnedSpace {
  static Status allocate(std::size_t bytes, void*& data);
  static void release(void* data);
};

// Bytes that are not initialized.
template <class Space>
class Array {
 public:
  static Result<Array> create(std::size_t bytes) {
    Array array;
    KVQ_RETURN_IF_ERROR(array.reserve(bytes));
    return array;
  }

  Array() = default;
  Array(Array&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}
  Array& operator=(Array&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }
  ~Array() { Space::release(data_); }

  std::size_t bytes() const { return bytes_; }
  template <typename T = std::byte>
  T* as() const {
    return static_cast<T*>(data_);
  }

  // Keeps what there is, if it is enough; otherwise the content is lost.
  Status reserve(std::size_t bytes) {
    bytes = std::max<std::size_t>(bytes, 1);
    if (bytes <= bytes_) return {};
    Space::release(std::exchange(data_, nullptr));
    bytes_ = 0;
    KVQ_RETURN_IF_ERROR(Space::allocate(bytes, data_));
    bytes_ = bytes;
    return {};
  }

 private:
  void* data_ = nullptr;
  std::size_t bytes_ = 0;
};

using DeviceArray = Array<DeviceSpace>;
using PinnedArray = Array<PinnedSpace>;

}  // namespace kvq::cuda
