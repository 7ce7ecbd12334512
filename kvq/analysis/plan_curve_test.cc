#include "kvq/analysis/plan_curve.h"

#include <gtest/gtest.h>

#include <cmath>

#include "kvq/analysis/candidates.h"
#include "kvq/cache/cache_spec.h"
#include "kvq/eval/text_score.h"
#include "kvq/runtime/test_models.h"

namespace kvq {
namespace {

LayerSpec spec_of(const char* text) { return parse_layer_spec(text).value(); }

TEST(PlanCurveTest, CostsAreDivergencesOfOneTensorAlone) {
  Engine engine = load_engine(tiny_model("llama3.2-tiny"));
  const std::vector<TokenWindow> windows = {random_tokens(400, engine.config().vocabulary, 1),
                                            random_tokens(300, engine.config().vocabulary, 2)};
  const std::vector<Bits> widths = {Bits::k2, Bits::k5};
  const auto pool = PagePool::create(0);
  const auto table =
      measure_width_costs(engine, windows, spec_of("k4:none,v4"), widths, 4, 64, pool).value();
  ASSERT_EQ(table.tensors.size(), 2 * static_cast<std::size_t>(engine.config().layers));
  // Values of layer 1 in 2 bits, measured as any format is.
  CacheSpec alone = engine.cache_spec(LayerSpec{}, 4, 64);
  alone.layers[1].value = spec_of("k4v2").value;
  const std::vector<std::shared_ptr<const CacheSpec>> specs = {
      std::make_shared<const CacheSpec>(alone)};
  const auto exact = make_spec(engine, "k16v16");
  const double expected = score_text(engine, windows, exact, specs, pool).value().formats[0].kl;
  const Candidate& candidate = table.tensors[3][0];
  EXPECT_EQ(to_string(candidate.spec, false), "v2");
  EXPECT_NEAR(candidate.cost, expected, 1e-6 + 1e-3 * expected);
  EXPECT_EQ(to_string(table.tensors[2][1].spec, true), "k5:none");
  for (const auto& candidates : table.tensors) EXPECT_LT(candidates[1].cost, candidates[0].cost);
}

// Two layers; only the keys of layer 1 matter to the output, the norms say layer 0.
TEST(PlanCurveTest, PlansFollowTheirCosts) {
  const LayerSpec base = spec_of("k4v2");
  const std::vector<Bits> widths = {Bits::k1, Bits::k2, Bits::k4, Bits::k8};
  CostTable norms;
  CostTable measured;
  for (int tensor = 0; tensor < 4; ++tensor) {
    auto& by_norm = norms.tensors.emplace_back();
    auto& by_output = measured.tensors.emplace_back();
    for (const Bits bits : widths) {
      TensorSpec spec = tensor % 2 == 0 ? base.key : base.value;
      spec.bits = bits;
      const std::int64_t bytes = section_bytes(spec, tensor % 2 == 0, 2, 64).value();
      const double error = std::exp2(-2.0 * std::log2(levels(bits)));
      by_norm.push_back({spec, bytes, (tensor == 0 ? 1e4 : 1) * error});
      by_output.push_back({spec, bytes, (tensor == 2 ? 1e4 : 1) * error});
    }
  }
  const std::vector<double> means = {2, 3};
  const auto plans = make_plans(norms, measured, base, 2, 64, means).value();
  ASSERT_EQ(plans.size(), 4U);
  for (const SizedPlan& plan : plans) {
    CacheSpec spec = CacheSpec::uniform(base, 2, 2, 64);
    spec.layers = plan.layers;
    EXPECT_LE(effective_bits(spec), plan.budget) << plan.method;
    const int favoured = plan.method == "norm" ? 0 : 1;
    EXPECT_GT(levels(plan.layers[favoured].key.bits), levels(plan.layers[1 - favoured].key.bits))
        << plan.method;
  }
  const std::vector<double> too_few = {0.5};
  EXPECT_FALSE(make_plans(norms, measured, base, 2, 64, too_few).has_value());
}

}  // namespace
}  // namespace kvq
