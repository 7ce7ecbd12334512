#include "kvq/analysis/refinement.h"

#include <algorithm>

#include "kvq/analysis/candidates.h"
#include "kvq/analysis/output_error.h"

namespace kvq {
namespace {

// The candidates' costs in a plan: each tensor's scaled so that its chosen one costs `marginal`.
CostTable scaled(const CostTable& table, const std::vector<int>& choice,
                 std::span<const double> marginal) {
  // What a tensor costs in a plan differs from what it costs alone, but not by any factor: beyond
  // these, it is noise.
  constexpr double kLeast = 1.0 / 8;
  constexpr double kMost = 8;
  CostTable result = table;
  for (std::size_t tensor = 0; tensor < table.tensors.size(); ++tensor) {
    const double own = table.tensors[tensor][static_cast<std::size_t>(choice[tensor])].cost;
    const double factor = own > 0 ? std::clamp(marginal[tensor] / own, kLeast, kMost) : 1;
    for (Candidate& candidate : result.tensors[tensor]) candidate.cost *= factor;
  }
  return result;
}

}  // namespace

Result<RefinedPlan> refine_plan(Engine& engine, std::span<const TokenWindow> windows,
                                const CostTable& table, std::int64_t budget_bytes, int rounds,
                                const SensitivityOptions& options,
                                const std::shared_ptr<PagePool>& pool) {
  const ModelConfig& config = engine.config();
  KVQ_ASSIGN_OR_RETURN(std::vector<int> choice,
                       choose_pages(table, budget_bytes, config.kv_heads, config.head_dim));
  std::vector<FormatChange> releases;
  releases.reserve(static_cast<std::size_t>(2) * config.layers);
  for (int tensor = 0; tensor < 2 * config.layers; ++tensor) releases.push_back({tensor, {}});
  RefinedPlan best;
  std::vector<std::vector<int>> met;
  for (int round = 0;; ++round) {
    CacheSpec cache = engine.cache_spec(LayerSpec{}, options.sinks, options.window);
    cache.layers = chosen_layers(table, choice);
    const bool last = round == rounds;
    KVQ_ASSIGN_OR_RETURN(
        const std::vector<double> divergences,
        mean_output_errors(engine, windows, cache,
                           last ? std::span<const FormatChange>() : releases, pool));
    if (round == 0 || divergences[0] < best.divergence) best = {cache.layers, divergences[0]};
    if (last) return best;
    met.push_back(choice);
    std::vector<double> marginal;
    for (std::size_t i = 1; i < divergences.size(); ++i) {
      marginal.push_back(divergences[0] - divergences[i]);
    }
    KVQ_ASSIGN_OR_RETURN(choice, choose_pages(scaled(table, choice, marginal), budget_bytes,
                                              config.kv_heads, config.head_dim));
    if (std::ranges::find(met, choice) != met.end()) return best;
  }
}

}  // namespace kvq
