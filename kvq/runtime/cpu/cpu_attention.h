// Caches in host memory.
#pragma once

#include <memory>

#include "kvq/attention/attention.h"
#include "kvq/base/thread_pool.h"
#include "kvq/runtime/cached_attention.h"

namespace kvq {

// `threads` outlives the result.
Result<std::unique_ptr<CachedAttention>> create_cpu_attention(const AttentionShape& shape,
                                                              const AttentionOptions& options,
                                                              ThreadPool& threads);

}  // namespace kvq
