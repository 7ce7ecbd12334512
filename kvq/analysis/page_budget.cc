#include "kvq/analysis/page_budget.h"

#include "kvq/cache/cache_spec.h"
#include "kvq/cache/view.h"
#include "kvq/plan/cost_table.h"

namespace kvq {

Result<std::int64_t> page_budget(const PlanBudget& budget, const PlanModel& model, int sinks,
                                 int window) {
  if (budget.bits > 0) {
    return budget_bytes(budget.bits, model.layers, model.kv_heads, model.head_dim);
  }
  const std::int64_t pages = packed_pages(budget.tokens, sinks, window);
  const CacheSpec exact =
      CacheSpec::uniform(LayerSpec{}, model.layers, model.kv_heads, model.head_dim);
  const std::int64_t rows = cache_bytes_16bit(exact, budget.tokens - pages * kPageTokens);
  const std::int64_t memory = budget.memory / budget.batch;
  if (pages == 0) {
    return fail(
        "tokens {}: nothing of it is packed: the first {} and the newest {} tokens stay in 16 bits",
        budget.tokens, sinks, window);
  }
  if (memory <= rows) {
    return fail(
        "memory: {} bytes for each of {} sequences are less than the {} of tokens that stay in 16 "
        "bits",
        memory, budget.batch, rows);
  }
  return (memory - rows) / pages;
}

}  // namespace kvq
