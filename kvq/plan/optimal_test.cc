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
  int ties = 0;
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
      if (best.bytes < budget) ++ties;
    }
  }
  EXPECT_GT(ties, 0);
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

// Layers whose sensitivity differs by orders of magnitude, errors that fall by about 4 a bit.
CostTable model_table(int layers, int noise) {
  std::mt19937 random(3);
  std::lognormal_distribution<double> sensitivity(0, 2);
  std::lognormal_distribution<double> wobble(0, 0.3);
  CostTable table;
  table.tensors.resize(static_cast<std::size_t>(2 * layers));
  for (auto& candidates : table.tensors) {
    const double scale = sensitivity(random);
    for (int bits = 1; bits <= 8; ++bits) {
      for (int option = 0; option < 6; ++option) {
        const double stored = bits + 0.125 * (1 << option % 4);
        candidates.push_back({{},
                              static_cast<std::int64_t>(stored * 8192),
                              scale * std::pow(4.0, -stored) * (noise ? wobble(random) : 1.0)});
      }
    }
  }
  return table;
}

TEST(Optimal, LargeModelInTime) {
  for (const int noise : {0, 1}) {
    const CostTable table = model_table(80, noise);
    for (const double bits : {1.2, 1.75, 2.0, 2.25, 3.0, 3.5, 5.0}) {
      const auto start = std::chrono::steady_clock::now();
      const auto budget = static_cast<std::int64_t>(bits * 8192 * 160);
      const auto choice = choose_optimal(table, budget);
      const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
      ASSERT_TRUE(choice);
      EXPECT_LE(chosen_bytes(table, *choice), budget);
      EXPECT_LT(seconds.count(), 10) << bits << " bits";  // with sanitizers; below 1 s without
      RecordProperty(
          fmt::format("milliseconds_noise_{}_at_{}_bits", noise, static_cast<int>(100 * bits)),
          static_cast<int>(1000 * seconds.count()));
    }
  }
}

}  // namespace
}  // namespace kvq
