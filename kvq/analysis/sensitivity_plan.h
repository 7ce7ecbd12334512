// A plan by measured sensitivity, from a loaded model and a text.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "kvq/analysis/calibration.h"
#include "kvq/analysis/sensitivity.h"

namespace kvq {

struct SensitivityPlanOptions {
  SensitivityOptions sensitivity;
  CalibrationOptions calibration;
  int rounds = 2;  // of refinement
};

struct CalibratedPlan {
  std::vector<LayerSpec> layers;
  double divergence = 0;  // of the model's output with it, mean over the calibration text, nats
  int windows = 0;        // of that text, copies left out
};

// The layers of least effect whose pages take at most `budget_bytes` (page_budget()). The same for
// the same options.
Result<CalibratedPlan> plan_by_sensitivity(Engine& engine, const Tokenizer& tokenizer,
                                           std::int64_t budget_bytes,
                                           const SensitivityPlanOptions& options,
                                           const std::shared_ptr<PagePool>& pool);

}  // namespace kvq
