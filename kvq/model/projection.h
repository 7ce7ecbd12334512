// The weights that make keys and values: the one place that knows where a checkpoint keeps them.
#pragma once

#include "kvq/base/status.h"
#include "kvq/model/checkpoint.h"
#include "kvq/model/config.h"

namespace kvq {

// [kv_heads * head_dim, hidden], the rows of a kv head together. An architecture that stores q, k
// and v as one tensor gives the rows of its own here: they lie together too.
Result<TensorRef> key_projection(const ModelConfig& config, const Checkpoint& checkpoint,
                                 int layer);
Result<TensorRef> value_projection(const ModelConfig& config, const Checkpoint& checkpoint,
                                   int layer);

}  // namespace kvq
