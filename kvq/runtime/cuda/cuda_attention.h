// Caches in the memory of a CUDA device, and attention to them.
#pragma once

#include <memory>

#include "kvq/attention/attention.h"
#include "kvq/cache/cuda/device.h"
#include "kvq/runtime/cached_attention.h"

namespace kvq::cuda {

struct CudaAttentionOptions {
  int max_rows = 0;            // of a pass; where prefill is exact, of one that decodes
  bool exact_prefill = false;  // as in AttentionOptions
};

Result<std::unique_ptr<CachedAttention>> create_cuda_attention(std::shared_ptr<Device> device,
                                                               const AttentionShape& shape,
                                                               const CudaAttentionOptions& options);

}  // namespace kvq::cuda
