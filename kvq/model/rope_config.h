// The rotary-position fields of config.json.
#pragma once

#include "kvq/base/json_file.h"
#include "kvq/base/status.h"
#include "kvq/model/config.h"

namespace kvq {

// Fills rope_theta and rope_scaling of `config` from the fields of config.json. Two spellings:
//   transformers 4: "rope_theta": 5e5, "rope_scaling": null | {"rope_type" or "type": ..., ...}
//   transformers 5: "rope_parameters": {"rope_type": ..., "rope_theta": 5e5, ...}
Status read_rope(const JsonFields& fields, ModelConfig& config);

}  // namespace kvq
