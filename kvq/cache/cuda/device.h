// A CUDA device and the stream of its work.
#pragma once

#include <cuda_runtime_api.h>

#include <memory>
#include <string>

#include "kvq/base/cuda/memory.h"

namespace kvq::cuda {

// All work of an engine is ordered by one stream.
class Device {
 public:
  // Device 0, and a stream of its own. Fails, with the reason, where there is none that the kernels
  // were compiled for.
  static Result<std::shared_ptr<Device>> open();
  // Device number `index`, which is current, for work on the caller's streams.
  static Result<std::shared_ptr<Device>> of_caller(int index);
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;
  ~Device();

  cudaStream_t stream() const { return stream_; }
  // The caller's stream from now on. Its work waits for what was given to the one before.
  Status use_stream(cudaStream_t stream);
  const std::string& name() const { return name_; }
  Status synchronize() const;

 private:
  Device() = default;
  Status check_properties(int index);

  cudaStream_t stream_ = nullptr;
  cudaEvent_t switched_ = nullptr;  // null: the stream is the device's own
  std::string name_;
};

}  // namespace kvq::cuda
