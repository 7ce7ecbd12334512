// Shapes of models whose weights are random.
#pragma once

#include <string>

#include "kvq/base/status.h"
#include "kvq/model/config.h"

namespace kvq {

// "llama-8b": the shape of Llama 3.1 8B.
Result<ModelConfig> random_model_config(const std::string& name);

}  // namespace kvq
