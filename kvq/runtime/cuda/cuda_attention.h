// Caches in the memory of a CUDA device, and attention to them.
#pragma once

#include <memory>

#include "kvq/attention/attention.h"
#include "kvq/cache/cuda/device.h"
#include "kvq/runtime/cached_attention.h"

namespace kvq::cuda {

// Passes have at most `max_rows` rows.
Result<std::unique_ptr<CachedAttention>> create_cuda_attention(std::shared_ptr<Device> device,
                                                               const AttentionShape& shape,
                                                               int max_rows);

}  // namespace kvq::cuda
