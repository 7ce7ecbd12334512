#include "kvq/analysis/plan_curve.h"

#include "kvq/analysis/candidates.h"
#include "kvq/analysis/output_error.h"
#include "kvq/plan/greedy.h"

namespace kvq {
namespace {

// Stored bits a number that are not codes: scales, centers, padding.
Result<double> parameter_bits(const LayerSpec& base, int head_dim) {
  LayerSpec four_bits = base;
  four_bits.key.bits = Bits::k4;
  four_bits.value.bits = Bits::k4;
  KVQ_ASSIGN_OR_RETURN(const PageFormat format, PageFormat::create(four_bits, head_dim));
  return format.effective_bits() - 4;
}

}  // namespace

Result<CostTable> measure_width_costs(Engine& engine, std::span<const TokenWindow> windows,
                                      const LayerSpec& base, const std::vector<Bits>& widths,
                                      int sinks, int window,
                                      const std::shared_ptr<PagePool>& pool) {
  const ModelConfig& config = engine.config();
  std::vector<FormatChange> changes;
  for (int tensor = 0; tensor < 2 * config.layers; ++tensor) {
    for (const Bits bits : widths) {
      FormatChange change{tensor, tensor % 2 == 0 ? base.key : base.value};
      change.spec.bits = bits;
      changes.push_back(change);
    }
  }
  const CacheSpec exact = engine.cache_spec(LayerSpec{}, sinks, window);
  KVQ_ASSIGN_OR_RETURN(const std::vector<double> errors,
                       mean_output_errors(engine, windows, exact, changes, pool));
  CostTable table;
  table.tensors.resize(2 * static_cast<std::size_t>(config.layers));
  for (std::size_t i = 0; i < changes.size(); ++i) {
    const FormatChange& change = changes[i];
    KVQ_ASSIGN_OR_RETURN(const std::int64_t bytes, tensor_bytes(change.spec, change.tensor % 2 == 0,
                                                                config.kv_heads, config.head_dim));
    // errors[0] is that of the base.
    table.tensors[static_cast<std::size_t>(change.tensor)].push_back(
        {change.spec, bytes, errors[i + 1]});
  }
  return table;
}

Result<std::vector<SizedPlan>> make_plans(const CostTable& norm_costs, const CostTable& sensitivity,
                                          const LayerSpec& base, int kv_heads, int head_dim,
                                          std::span<const double> means) {
  KVQ_ASSIGN_OR_RETURN(const double parameters, parameter_bits(base, head_dim));
  const auto layers = static_cast<int>(sensitivity.tensors.size() / 2);
  std::vector<SizedPlan> plans;
  for (const double mean : means) {
    KVQ_ASSIGN_OR_RETURN(const GreedyPlan greedy, choose_widths(norm_costs, mean));
    plans.push_back({"norm", mean + parameters, chosen_layers(norm_costs, greedy.choice)});
    const std::int64_t budget = budget_bytes(mean + parameters, layers, kv_heads, head_dim);
    KVQ_ASSIGN_OR_RETURN(const std::vector<int> choice,
                         choose_pages(sensitivity, budget, kv_heads, head_dim));
    plans.push_back({"sensitivity", mean + parameters, chosen_layers(sensitivity, choice)});
  }
  return plans;
}

}  // namespace kvq
