#include "kvq/analysis/candidates.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>

#include "kvq/codec/page_format.h"
#include "kvq/plan/optimal.h"

namespace kvq {
namespace {

TensorSpec width(Bits bits) {
  TensorSpec spec;
  spec.bits = bits;
  return spec;
}

TEST(CandidatesTest, EveryWidthAndChoiceIsListedOnce) {
  const CandidateOptions options{{Bits::k2, Bits::k4}, {128, 64}};
  for (const int head_dim : {64, 128}) {
    const auto candidates = list_candidates(options, true, 2, head_dim).value();
    EXPECT_EQ(candidates.size(), 2U * 2 * 2 * 2 * 2);
    for (std::size_t i = 0; i < candidates.size(); ++i) {
      EXPECT_EQ(candidates[i].bytes, section_bytes(candidates[i].spec, true, 2, head_dim).value());
      for (std::size_t j = 0; j < i; ++j) EXPECT_NE(candidates[i].spec, candidates[j].spec);
    }
  }
}

TEST(CandidatesTest, GroupsThatSaveNothingAreLeftOut) {
  // 16 scales of 256 numbers take the 64 bytes that 32 scales of 128 do.
  const CandidateOptions options{{Bits::k2}, {64, 128, 256}};
  const auto candidates = list_candidates(options, true, 1, 64).value();
  EXPECT_EQ(std::ranges::count(candidates, 256, [](const Candidate& c) { return c.spec.group; }),
            0);
  EXPECT_GT(std::ranges::count(candidates, 128, [](const Candidate& c) { return c.spec.group; }),
            0);
}

TEST(CandidatesTest, NothingToChooseFromIsAnError) {
  EXPECT_FALSE(list_candidates({{}, {64}}, true, 2, 64));
  EXPECT_FALSE(list_candidates({{Bits::k2}, {}}, true, 2, 64));
  EXPECT_FALSE(list_candidates({{Bits::k2}, {48}}, true, 2, 64));
}

TEST(CandidatesTest, ShortlistIsTheLowerHullAndWhatIsNearIt) {
  const auto at = [](std::int64_t bytes, double cost) {
    return Candidate{width(Bits::k2), bytes, cost};
  };
  const auto list = shortlist(
      {at(400, 1), at(100, 16), at(200, 11), at(300, 5.9), at(200, 12), at(350, 9), at(250, 8.6)},
      0.1);
  // The hull: 100, 300, 400 bytes; 250 bytes lie 4 % above it, 200 bytes less than 1 %.
  std::vector<std::pair<std::int64_t, double>> kept;
  kept.reserve(list.size());
  for (const Candidate& candidate : list) kept.emplace_back(candidate.bytes, candidate.cost);
  EXPECT_EQ(kept, (std::vector<std::pair<std::int64_t, double>>{
                      {100, 16}, {200, 11}, {250, 8.6}, {300, 5.9}, {400, 1}}));
  EXPECT_EQ(shortlist({at(100, 16), at(200, 15), at(300, 1)}, 0.1).size(), 2U);
  EXPECT_EQ(shortlist({at(100, 3)}, 0.1).size(), 1U);
}

// Exhaustive: the cheapest choice whose padded pages fit.
TEST(CandidatesTest, ChosenPagesFitTheBudgetWithPaddingCounted) {
  std::mt19937 random(5);
  std::uniform_real_distribution<double> cost(0, 1);
  constexpr int kHeadDim = 64;
  CostTable table;
  for (int tensor = 0; tensor < 4; ++tensor) {
    auto& candidates = table.tensors.emplace_back();
    for (const Bits bits : {Bits::k1, Bits::k2, Bits::k4}) {
      for (const int group : {64, 128}) {
        TensorSpec spec = width(bits);
        spec.group = group;
        candidates.push_back(
            {spec, section_bytes(spec, tensor % 2 == 0, 1, kHeadDim).value(), cost(random)});
      }
    }
  }
  for (const double bits : {1.2, 1.5, 2.0, 2.3, 3.0}) {
    const std::int64_t budget = budget_bytes(bits, 2, 1, kHeadDim);
    const auto choice = choose_pages(table, budget, 1, kHeadDim);
    ASSERT_TRUE(choice) << choice.error().message;
    double total = 0;
    for (std::size_t i = 0; i < 4; ++i) {
      total += table.tensors[i][static_cast<std::size_t>((*choice)[i])].cost;
    }
    std::int64_t bytes = 0;
    for (const LayerSpec& layer : chosen_layers(table, *choice)) {
      bytes += static_cast<std::int64_t>(PageFormat::create(layer, kHeadDim).value().page_bytes);
    }
    EXPECT_LE(bytes, budget);
    // No worse than the best choice with a page's padding less of room.
    const auto tight = choose_optimal(table, budget - 2 * 64);
    if (!tight) continue;
    double tight_total = 0;
    for (std::size_t i = 0; i < 4; ++i) {
      tight_total += table.tensors[i][static_cast<std::size_t>((*tight)[i])].cost;
    }
    EXPECT_LE(total, tight_total + 1e-12);
  }
  EXPECT_FALSE(choose_pages(table, 100, 1, kHeadDim));
}

}  // namespace
}  // namespace kvq
