// The current CUDA device and its stream.
#pragma once

#include <cuda_runtime_api.h>

#include <memory>
#include <string>

#include "kvq/base/cuda/memory.h"

namespace kvq::cuda {

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
