// kvq plan --method sensitivity.
#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "apps/kvq/options.h"
#include "kvq/analysis/sensitivity.h"
#include "kvq/plan/plan.h"

namespace kvq {

// --sensitivity, --calibration, --windows, --copies, --rounds, --seed
struct SensitivityChoice {
  std::string mode = "attention";
  std::string calibration_file;  // empty: the model writes the text
  int windows = 4;
  int copies = 2;
  int rounds = 2;
  std::uint64_t seed = 0;

  void add(CLI::App& app);
};

struct SensitivityPlan {
  PlanModel model;
  std::vector<LayerSpec> layers;
  double divergence = 0;  // of the output on the calibration text, nats
  std::string text;       // what it was measured on, for people
};

// Bytes that one packed page of all layers and kv heads may take.
using PageBudget = std::function<Result<std::int64_t>(const PlanModel& model)>;

Result<SensitivityPlan> plan_by_sensitivity(
    const ModelOptions& model, const MachineOptions& machine, const CacheOptions& cache,
    const SensitivityChoice& choice, const CandidateOptions& candidates, const PageBudget& budget);

}  // namespace kvq
