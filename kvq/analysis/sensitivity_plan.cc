#include "kvq/analysis/sensitivity_plan.h"

#include <utility>

#include "kvq/analysis/refinement.h"

namespace kvq {

Result<CalibratedPlan> plan_by_sensitivity(Engine& engine, const Tokenizer& tokenizer,
                                           std::int64_t budget_bytes,
                                           const SensitivityPlanOptions& options,
                                           const std::shared_ptr<PagePool>& pool) {
  KVQ_ASSIGN_OR_RETURN(const auto windows,
                       calibration_windows(engine, tokenizer, options.calibration, pool));
  KVQ_ASSIGN_OR_RETURN(const CostTable table,
                       measure_sensitivity(engine, windows, options.sensitivity, pool));
  KVQ_ASSIGN_OR_RETURN(RefinedPlan plan, refine_plan(engine, windows, table, budget_bytes,
                                                     options.rounds, options.sensitivity, pool));
  return CalibratedPlan{std::move(plan.layers), plan.divergence,
                        static_cast<int>(windows.size()) - options.calibration.copies};
}

}  // namespace kvq
