// What tells one model from another: plans and tables of norms carry it.
#pragma once

#include <string>

#include "kvq/base/status.h"
#include "kvq/model/checkpoint.h"
#include "kvq/model/config.h"

namespace kvq {

// 16 hexadecimal digits: the checksum of the architecture, the shapes and, of every layer, the
// first row of the key and of the value projection as float32. It stays the same when a checkpoint
// is copied, renamed, sharded in another way or stored in a wider type; fine-tuning the projections
// changes it, other files (tokenizer, generation settings) do not.
Result<std::string> model_identity(const ModelConfig& config, const Checkpoint& checkpoint);

}  // namespace kvq
