#include "kvq/analysis/page_budget.h"

#include <gtest/gtest.h>

#include "kvq/cache/cache_spec.h"
#include "kvq/plan/cost_table.h"

namespace kvq {
namespace {

const PlanModel kModel{.identity = "", .layers = 3, .kv_heads = 2, .head_dim = 64};

TEST(PageBudgetTest, BitsAreStoredBits) {
  EXPECT_EQ(page_budget({.bits = 2.5}, kModel, 4, 64).value(), budget_bytes(2.5, 3, 2, 64));
}

TEST(PageBudgetTest, CachesOfTheBudgetFillTheMemory) {
  CacheSpec spec = CacheSpec::uniform(parse_layer_spec("k4v2").value(), 3, 2, 64);
  spec.sinks = 4;
  spec.window = 64;
  const std::int64_t page =
      3 * 2 * static_cast<std::int64_t>(PageFormat::create(spec.layers[0], 64).value().page_bytes);
  const std::int64_t memory = 2 * cache_bytes(spec, 1000);
  const PlanBudget budget{.memory = memory, .tokens = 1000, .batch = 2};
  EXPECT_EQ(page_budget(budget, kModel, 4, 64).value(), page);
}

TEST(PageBudgetTest, SaysWhatDoesNotFit) {
  const auto short_cache = page_budget({.memory = 1 << 20, .tokens = 60}, kModel, 4, 64);
  ASSERT_FALSE(short_cache);
  EXPECT_EQ(short_cache.error().message,
            "tokens 60: nothing of it is packed: the first 4 and the newest 64 tokens stay in 16 "
            "bits");
  const auto small = page_budget({.memory = 1000, .tokens = 200, .batch = 2}, kModel, 4, 64);
  ASSERT_FALSE(small);
  EXPECT_EQ(small.error().message.find("memory: 500 bytes for each of 2 sequences are less than"),
            0U);
}

}  // namespace
}  // namespace kvq
