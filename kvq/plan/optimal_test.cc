#include "kvq/plan/optimal.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <limits>
#include <random>

namespace kvq {
namespace {

double cost_of(const CostTable& table, const std::vector<int>& choice) {
  double cost = 0;
  for (std::size_t i = 0; i < choice.size(); ++i) {
    cost += table.tensors[i][static_cast<std::size_t>(choice[i])].cost;
  }
  return cost;
}

struct Best {
  double cost = std::numeric_limits<double>::infinity();
  std::int64_t bytes = 0;
};

// Every choice for tensors from `tensor` on.
void search(const CostTable& table, std::size_t tensor, std::int64_t bytes, double cost,
            std::int64_t budget, Best& best) {
  if (bytes > budget) return;
  if (tensor == table.tensors.size()) {
    if (cost < best.cost || (cost == best.cost && bytes < best.bytes)) best = {cost, bytes};
    return;
  }
  for (const Candidate& candidate : table.tensors[tensor]) {
    search(table, tensor + 1, bytes + candidate.bytes, cost + candidate.cost, budget, best);
  }
}

CostTable random_table(std::mt19937& random, std::size_t tensors, int most_candidates,
                       int most_bytes, int most_cost) {
  std::uniform_int_distribution<int> count(1, most_candidates);
  std::uniform_int_distribution<int> bytes(1, most_bytes);
  std::uniform_int_distribution<int> cost(-most_cost / 8, most_cost);
  CostTable table;
  table.tensors.resize(tensors);
  for (auto& candidates : table.tensors) {
    candidates.resize(static_cast<std::size_t>(count(random)));
    for (Candidate& candidate : candidates) {
      candidate.bytes = bytes(random);
      candidate.cost = cost(random);
    }
  }
  return table;
}

// Costs are small integers, so that sums are exact and ties are ties.
TEST(Optimal, AgreesWithEveryChoiceTried) {
  std::mt19937 random(1);
  for (int round = 0; round < 1000; ++round) {
    // From many equal bytes and costs to few.
    const int most = 2 << (round % 8);
    const CostTable table =
        random_table(random, 2 + 2 * (round % 3), 5, most, round % 2 ? most : 6);
    std::int64_t least = 0;
    std::int64_t largest = 0;
    for (const auto& candidates : table.tensors) {
      const auto [low, high] = std::ranges::minmax(candidates, {}, &Candidate::bytes);
      least += low.bytes;
      largest += high.bytes;
    }
    for (int i = 0; i < 4; ++i) {
      const std::int64_t budget =
          std::uniform_int_distribution<std::int64_t>(least - 1, largest + 1)(random);
      Best best;
      search(table, 0, 0, 0, budget, best);
      const auto choice = choose_optimal(table, budget);
      ASSERT_EQ(choice.has_value(), budget >= least);
      if (!choice) continue;
      ASSERT_EQ(choice->size(), table.tensors.size());
      ASSERT_EQ(cost_of(table, *choice), best.cost) << "round " << round << ", budget " << budget;
      ASSERT_EQ(chosen_bytes(table, *choice), best.bytes)
          << "round " << round << ", budget " << budget;
    }
  }
}

TEST(Optimal, AgreesWithEveryChoiceTriedOnRealCosts) {
  std::mt19937 random(2);
  std::lognormal_distribution<double> factor(0, 2);
  for (int round = 0; round < 200; ++round) {
    CostTable table = random_table(random, 6, 6, 100, 1);
    for (auto& candidates : table.tensors) {
      for (Candidate& candidate : candidates)
        candidate.cost = factor(random) / static_cast<double>(candidate.bytes);
    }
    const std::int64_t budget = std::uniform_int_distribution<std::int64_t>(60, 400)(random);
    Best best;
    search(table, 0, 0, 0, budget, best);
    const auto choice = choose_optimal(table, budget);
    ASSERT_EQ(choice.has_value(), std::isfinite(best.cost));
    if (choice) {
      ASSERT_NEAR(cost_of(table, *choice), best.cost, 1e-12 * best.cost);
      ASSERT_LE(chosen_bytes(table, *choice), budget);
    }
  }
}

enum class Costs { kSmooth, kNoisy, kEqual, kLinear, kUnrelated };

// 48 candidates of 1 to 9 stored bits a tensor. Smooth: tensors' sensitivities differ by orders of
// magnitude, and errors fall by 4 a bit.
CostTable model_table(int layers, Costs costs, bool odd_bytes) {
  std::mt19937 random(3);
  std::lognormal_distribution<double> sensitivity(0, 2);
  std::lognormal_distribution<double> noise(0, 0.5);
  std::uniform_int_distribution<int> odd(0, 511);
  CostTable table;
  table.tensors.resize(static_cast<std::size_t>(2 * layers));
  for (auto& candidates : table.tensors) {
    const double scale = costs == Costs::kEqual ? 1 : sensitivity(random);
    for (int i = 0; i < 48; ++i) {
      const int whole = 1 + i / 6;
      const double bits = whole + 0.125 * (1 << i % 6) / 4;
      Candidate& candidate = candidates.emplace_back();
      candidate.bytes = static_cast<std::int64_t>(bits * 8192) + (odd_bytes ? odd(random) : 0);
      candidate.cost = scale * std::pow(4.0, -bits);
      if (costs == Costs::kNoisy) candidate.cost *= noise(random);
      if (costs == Costs::kLinear) candidate.cost = -static_cast<double>(candidate.bytes);
      if (costs == Costs::kUnrelated) candidate.cost = noise(random);
    }
  }
  return table;
}

TEST(Optimal, LargeModelInTime) {
  double slowest = 0;
  for (const Costs costs :
       {Costs::kSmooth, Costs::kNoisy, Costs::kEqual, Costs::kLinear, Costs::kUnrelated}) {
    for (const bool odd_bytes : {false, true}) {
      const CostTable table = model_table(80, costs, odd_bytes);
      for (const double bits : {1.1, 1.75, 2.0, 2.25, 3.0, 3.49, 5.0, 8.5}) {
        const auto budget = static_cast<std::int64_t>(bits * 8192 * 160);
        const auto start = std::chrono::steady_clock::now();
        const auto choice = choose_optimal(table, budget);
        const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
        ASSERT_TRUE(choice);
        EXPECT_LE(chosen_bytes(table, *choice), budget);
        // Room for sanitizers and busy machines.
        EXPECT_LT(seconds.count(), 20) << static_cast<int>(costs) << ", " << bits << " bits";
        slowest = std::max(slowest, seconds.count());
      }
    }
  }
  RecordProperty("slowest_milliseconds", static_cast<int>(1000 * slowest));
}

}  // namespace
}  // namespace kvq
