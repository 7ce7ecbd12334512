// What a device is to an engine.
#pragma once

#include <memory>

#include "kvq/attention/attention.h"
#include "kvq/runtime/cached_attention.h"
#include "kvq/runtime/engine.h"
#include "kvq/runtime/ops.h"

namespace kvq {

struct Backend {
  std::unique_ptr<Ops> ops;
  std::unique_ptr<CachedAttention> attention;
};

// An error in a build without CUDA, and on a machine without a device or its libraries.
//   bfloat16  weights in products; float32 otherwise
//   max_rows  of a pass
Result<Backend> create_cuda_backend(const AttentionShape& shape, const EngineOptions& options,
                                    bool bfloat16, int max_rows);

}  // namespace kvq
