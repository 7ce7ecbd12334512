#include "kvq/plan/greedy.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <nlohmann/json.hpp>

#include "kvq/base/file.h"
#include "kvq/base/test_directory.h"
#include "kvq/plan/norm_table.h"

namespace kvq {
namespace {

NormTable norms_of(std::vector<double> keys, std::vector<double> values) {
  NormTable norms;
  norms.model = {
      .identity = "", .layers = static_cast<int>(keys.size()), .kv_heads = 8, .head_dim = 128};
  norms.keys = std::move(keys);
  norms.values = std::move(values);
  return norms;
}

Result<GreedyPlan> plan_widths(const NormTable& norms, const std::vector<Bits>& widths,
                               double budget) {
  return choose_widths(width_costs(norms, LayerSpec{}, widths).value(), budget);
}

Result<GreedyPlan> plan_groups(const NormTable& norms, const std::vector<int>& groups,
                               double budget) {
  const std::vector<LayerSpec> base(norms.keys.size(), parse_layer_spec("k4v2").value());
  return choose_groups(group_costs(norms, base, groups).value(), budget);
}

TEST(Greedy, WidthsByHand) {
  const NormTable norms = norms_of({8, 4}, {2, 1});
  const std::vector<Bits> widths = {Bits::k1, Bits::k2, Bits::k4};
  // Squares 64, 4, 16, 1 (K0, V0, K1, V1). Error off per bit from 1 to 2: 3/16 of the square; from
  // 2 to 4: 15/512 of it. So K0 (12), K1 (3), K0 (1.9), V0 (.75), K1 (.47), V1 (.19).
  EXPECT_EQ(plan_widths(norms, widths, 1)->choice, (std::vector{0, 0, 0, 0}));
  EXPECT_EQ(plan_widths(norms, widths, 1.25)->choice, (std::vector{1, 0, 0, 0}));
  EXPECT_EQ(plan_widths(norms, widths, 1.5)->choice, (std::vector{1, 0, 1, 0}));
  // One bit is left, which K0's step of two exceeds: V0's fits.
  EXPECT_EQ(plan_widths(norms, widths, 1.75)->choice, (std::vector{1, 1, 1, 0}));
  EXPECT_EQ(plan_widths(norms, widths, 2)->choice, (std::vector{2, 0, 1, 0}));
  EXPECT_EQ(plan_widths(norms, widths, 2.25)->choice, (std::vector{2, 1, 1, 0}));
  EXPECT_EQ(plan_widths(norms, widths, 3)->choice, (std::vector{2, 1, 2, 1}));
}

TEST(Greedy, WidthBudgetsThatCannotBeMet) {
  const NormTable norms = norms_of({8, 4}, {2, 1});
  expect_error(plan_widths(norms, {Bits::k2, Bits::k4}, 1.5),
               "expected at least 2 bits, the narrowest widths, found 1.5");
  expect_error(plan_widths(norms, {Bits::k2}, std::nan("")), "found nan");
  const auto above = plan_widths(norms, {Bits::k2, Bits::k4}, 9);
  ASSERT_TRUE(above);
  EXPECT_EQ(above->choice, (std::vector{1, 1, 1, 1}));
  EXPECT_EQ(above->average, 4);
  // Two bits of four are left over: no step fits.
  EXPECT_EQ(plan_widths(norms, {Bits::k2, Bits::k4}, 2.25)->average, 2);
}

TEST(Greedy, EqualNormsTakeTheFirst) {
  const NormTable norms = norms_of({1, 1}, {1, 1});
  EXPECT_EQ(plan_widths(norms, {Bits::k2, Bits::k3}, 2.5)->choice, (std::vector{1, 1, 0, 0}));
  EXPECT_EQ(plan_groups(norms, {32, 64, 128}, 64)->choice, (std::vector{1, 1, 1, 1}));
}

TEST(Greedy, GroupsByHand) {
  // Roots 4, 2, 2, 1; target 4 / 64; kappa = 9 / (4/64) = 144; groups 36, 72, 72, 144 round to 32,
  // 64, 64, 128: the sum of inverses 1/32 + 2/64 + 1/128 is 1/128 above 4/64. Growing a group of 64
  // takes just that off at a penalty of 4 * 64 / (1/128); growing the first takes off 1/64: too
  // much.
  const NormTable norms = norms_of({16, 4}, {4, 1});
  const auto plan = plan_groups(norms, {32, 64, 128}, 64);
  ASSERT_TRUE(plan);
  EXPECT_EQ(plan->choice, (std::vector{0, 2, 1, 2}));
  EXPECT_DOUBLE_EQ(plan->average, 64);
  // 96 is as far from 64 as from 128: both begin at 64 and the first grows. From 128 neither could
  // shrink again.
  EXPECT_EQ(plan_groups(norms_of({1}, {1}), {64, 128}, 96)->choice, (std::vector{1, 0}));
  expect_error(plan_groups(norms, {32, 64}, 65), "expected at most 64");
  expect_error(plan_groups(norms, {32, 64}, 0), "expected at most 64");
  EXPECT_DOUBLE_EQ(plan_groups(norms, {32, 64}, 8)->average, 32);
}

// Plans that the paper's own planner made from its norm tables; not part of the project.
class PublishedPlans : public testing::Test {
 protected:
  void SetUp() override {
    const char* shared = std::getenv("KVQ_SHARED");
    if (shared == nullptr || *shared == '\0') {
      GTEST_SKIP() << "KVQ_SHARED is not set: no reference/plans.json";
    }
    folder_ = std::filesystem::path(shared) / "reference";
    plans_ = nlohmann::json::parse(read_file(folder_ / "plans.json").value());
  }

  // "meta-llama/Llama-3.1-8B-Instruct" is "Llama3.1-8B-it" in the tables' names.
  NormTable norms_of(const nlohmann::json& plan) const {
    std::string model = plan["model"];
    model = model.substr(model.find('/') + 1);
    if (model.starts_with("Llama-")) model.erase(5, 1);
    if (const auto end = model.find("-Instruct"); end != std::string::npos)
      model.replace(end, 9, "-it");
    const std::string file = model + "." + plan["score"].get<std::string>() + ".json";
    NormTable norms = read_norms(folder_ / "norms" / file).value();
    norms.model.kv_heads = 8;
    norms.model.head_dim = 128;
    return norms;
  }

  std::filesystem::path folder_;
  nlohmann::json plans_;
};

TEST_F(PublishedPlans, EveryOneIsMadeAgain) {
  int widths_plans = 0;
  int group_plans = 0;
  for (const auto& plan : plans_) {
    const NormTable norms = norms_of(plan);
    const bool is_widths = plan.contains("budget");
    std::vector<int> choice;
    std::vector<double> sizes;
    if (is_widths) {
      sizes = plan["bit_range"].get<std::vector<double>>();
      std::vector<Bits> widths;
      widths.reserve(sizes.size());
      for (const double size : sizes) {
        widths.push_back(*std::ranges::find(packed_bits(), size, code_bits));
      }
      choice = plan_widths(norms, widths, plan["budget"])->choice;
    } else {
      sizes = plan["group_sizes"].get<std::vector<double>>();
      choice = plan_groups(norms, {sizes.begin(), sizes.end()}, plan["group_budget"])->choice;
    }
    ++(is_widths ? widths_plans : group_plans);
    const auto& keys = plan[is_widths ? "nbits_k" : "g_k"];
    const auto& values = plan[is_widths ? "nbits_v" : "g_v"];
    ASSERT_EQ(choice.size(), keys.size() + values.size());
    for (std::size_t layer = 0; layer < keys.size(); ++layer) {
      ASSERT_EQ(sizes[static_cast<std::size_t>(choice[2 * layer])], keys[layer])
          << plan << " layer " << layer;
      ASSERT_EQ(sizes[static_cast<std::size_t>(choice[2 * layer + 1])], values[layer])
          << plan << " layer " << layer;
    }
  }
  EXPECT_EQ(widths_plans, 228);
  EXPECT_EQ(group_plans, 108);
}

}  // namespace
}  // namespace kvq
