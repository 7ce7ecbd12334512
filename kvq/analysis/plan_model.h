// What plans say about their model, from a checkpoint.
#pragma once

#include <filesystem>

#include "kvq/base/status.h"
#include "kvq/model/config.h"
#include "kvq/plan/plan.h"

namespace kvq {

// `directory` holds the model of `config`.
Result<PlanModel> plan_model(const ModelConfig& config, const std::filesystem::path& directory);

}  // namespace kvq
