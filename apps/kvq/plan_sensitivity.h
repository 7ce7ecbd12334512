// kvq plan --method sensitivity.
#pragma once

#include <CLI/CLI.hpp>
#include <string>
#include <vector>

#include "apps/kvq/options.h"
#include "kvq/analysis/page_budget.h"
#include "kvq/analysis/sensitivity_plan.h"
#include "kvq/plan/plan.h"

namespace kvq {

// --sensitivity, --calibration, --windows, --copies, --rounds, --seed
struct SensitivityChoice {
  std::string mode = "attention";
  std::string calibration_file;  // empty: the model writes the text
  SensitivityPlanOptions plan;   // all else

  void add(CLI::App& app);
};

struct SensitivityPlan {
  PlanModel model;
  std::vector<LayerSpec> layers;
  double divergence = 0;  // of the output on the calibration text, nats
  std::string text;       // what it was measured on, for people
};

Result<SensitivityPlan> run_sensitivity_plan(
    const ModelOptions& model, const MachineOptions& machine, const CacheOptions& cache,
    const SensitivityChoice& choice, const CandidateOptions& candidates, const PlanBudget& budget);

}  // namespace kvq
