// Sequences in device memory, copied from views of the host's cache. For tests.
#pragma once

#include <cuda_runtime_api.h>

#include <memory>
#include <vector>

#include "kvq/attention/cuda/decode.h"
#include "kvq/base/cuda/memory.h"

namespace kvq::cuda {

// Memory of the current device, full of NaN.
class DeviceBuffer {
 public:
  explicit DeviceBuffer(std::size_t bytes);

  void* get() const { return memory_.as<void>(); }
  template <typename T>
  T* as() const {
    return memory_.as<T>();
  }

 private:
  DeviceArray memory_;
};

// Pages lie in random order among unused ones; exact rows as the views have them.
class DeviceBatch {
 public:
  // views: of one format and number of kv heads.
  DeviceBatch(const std::vector<LayerView>& views, std::uint64_t seed);

  // Without query and output.
  const DecodeBatch& batch() const { return batch_; }

 private:
  void copy_pages(const std::vector<LayerView>& views, std::uint64_t seed);
  RowBlock copy_rows(const std::vector<LayerView>& views, ExactRows LayerView::*part);
  void* upload(const void* data, std::size_t bytes);

  std::vector<std::unique_ptr<DeviceBuffer>> buffers_;
  DecodeBatch batch_;
};

}  // namespace kvq::cuda
