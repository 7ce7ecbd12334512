// What each width of each tensor alone does to the output, and plans of several sizes.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "kvq/eval/windows.h"
#include "kvq/plan/norm_table.h"
#include "kvq/runtime/engine.h"

namespace kvq {

// Costs: mean KL divergence from a 16-bit cache, nats, when this tensor alone is packed, in this
// width; other options as in `base`. Every tensor has one candidate a width, in their order. Takes
// widths * layers passes over the whole model a window.
Result<CostTable> measure_width_costs(Engine& engine, std::span<const TokenWindow> windows,
                                      const LayerSpec& base, const std::vector<Bits>& widths,
                                      int sinks, int window, const std::shared_ptr<PagePool>& pool);

struct SizedPlan {
  std::string method;  // "norm" or "sensitivity"
  double budget = 0;   // stored bits a number, at most
  std::vector<LayerSpec> layers;
};

// For each mean of code bits: the published plan from norms, and the plan of least measured cost
// that stores no more, that is the code bits and the parameters of `base`.
//   norm_costs   width_costs() of `base`
//   sensitivity  measure_sensitivity()
Result<std::vector<SizedPlan>> make_plans(const CostTable& norm_costs, const CostTable& sensitivity,
                                          const LayerSpec& base, int kv_heads, int head_dim,
                                          std::span<const double> means);

}  // namespace kvq
