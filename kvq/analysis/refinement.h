// From costs of one tensor alone to a plan that is good as a whole.
//
// Costs of single tensors do not add up exactly. With the chosen plan in place, each tensor in turn
// gets its 16 bits back: what that gains is its cost in this plan, to which its other formats'
// costs are scaled for the next choice. A round takes 2 * layers passes over half of the layers a
// window.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "kvq/analysis/sensitivity.h"

namespace kvq {

struct RefinedPlan {
  std::vector<LayerSpec> layers;
  double divergence = 0;  // of the model's output with it, mean over the windows, nats
};

// The best plan met in `rounds` rounds of refinement, from the table's own choice on.
//   budget_bytes  of one packed page of all layers and kv heads
Result<RefinedPlan> refine_plan(Engine& engine, std::span<const TokenWindow> windows,
                                const CostTable& table, std::int64_t budget_bytes, int rounds,
                                const SensitivityOptions& options,
                                const std::shared_ptr<PagePool>& pool);

}  // namespace kvq
