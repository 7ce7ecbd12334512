#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "kvq/runtime/generate.h"

namespace kvq {
namespace {

constexpr int kDraws = 40000;

// Logits whose softmax at temperature 1 is `probabilities`, shifted: a constant changes nothing.
std::vector<float> logits_of(const std::vector<double>& probabilities) {
  std::vector<float> logits;
  for (const double p : probabilities) logits.push_back(static_cast<float>(std::log(p)) + 3.0F);
  return logits;
}

std::vector<double> frequencies(const SamplingOptions& options, const std::vector<float>& logits) {
  Sampler sampler(options);
  std::vector<double> counts(logits.size());
  for (int i = 0; i < kDraws; ++i) counts[static_cast<std::size_t>(sampler.pick(logits))] += 1;
  for (double& count : counts) count /= kDraws;
  return counts;
}

// 5 standard deviations of a frequency.
void expect_distribution(const SamplingOptions& options, const std::vector<float>& logits,
                         const std::vector<double>& expected) {
  const std::vector<double> found = frequencies(options, logits);
  for (std::size_t i = 0; i < expected.size(); ++i) {
    const double deviation = std::sqrt(expected[i] * (1 - expected[i]) / kDraws);
    EXPECT_NEAR(found[i], expected[i], 5 * deviation) << "token " << i;
  }
}

const std::vector<double> kProbabilities = {0.1, 0.4, 0.05, 0.25, 0.2};

TEST(SamplerTest, GreedyTakesTheFirstOfEqualMaxima) {
  Sampler sampler({});
  EXPECT_EQ(sampler.pick(std::vector<float>{1, 5, 2, 5}), 1);
  EXPECT_EQ(sampler.pick(std::vector<float>{-3, -9}), 0);
}

TEST(SamplerTest, TemperatureOneFollowsTheSoftmax) {
  expect_distribution({.temperature = 1}, logits_of(kProbabilities), kProbabilities);
}

TEST(SamplerTest, TemperatureSharpensTheSoftmax) {
  std::vector<double> expected;
  for (const double p : kProbabilities) expected.push_back(p * p);
  const double sum = std::reduce(expected.begin(), expected.end());
  for (double& p : expected) p /= sum;
  expect_distribution({.temperature = 0.5F}, logits_of(kProbabilities), expected);
}

TEST(SamplerTest, TopKKeepsTheKLikeliest) {
  expect_distribution({.temperature = 1, .top_k = 2}, logits_of(kProbabilities),
                      {0, 0.4 / 0.65, 0, 0.25 / 0.65, 0});
  expect_distribution({.temperature = 1, .top_k = 100}, logits_of(kProbabilities), kProbabilities);
  EXPECT_EQ(Sampler({.temperature = 1, .top_k = 1}).pick(logits_of(kProbabilities)), 1);
}

TEST(SamplerTest, TopPKeepsTheFewestThatReachIt) {
  expect_distribution({.temperature = 1, .top_p = 0.6F}, logits_of(kProbabilities),
                      {0, 0.4 / 0.65, 0, 0.25 / 0.65, 0});
  expect_distribution({.temperature = 1, .top_p = 0.7F}, logits_of(kProbabilities),
                      {0, 0.4 / 0.85, 0, 0.25 / 0.85, 0.2 / 0.85});
  // However small, the likeliest token stays.
  expect_distribution({.temperature = 1, .top_p = 0}, logits_of(kProbabilities), {0, 1, 0, 0, 0});
}

TEST(SamplerTest, TopPAppliesToWhatTopKLeft) {
  // Of {0.4, 0.25, 0.2} / 0.85, the first two reach 0.7.
  expect_distribution({.temperature = 1, .top_k = 3, .top_p = 0.7F}, logits_of(kProbabilities),
                      {0, 0.4 / 0.65, 0, 0.25 / 0.65, 0});
}

TEST(SamplerTest, SeedDecidesTheSequence) {
  const auto draw = [](std::uint64_t seed) {
    Sampler sampler({.temperature = 1, .seed = seed});
    std::vector<int> tokens;
    for (int i = 0; i < 64; ++i) tokens.push_back(sampler.pick(logits_of(kProbabilities)));
    return tokens;
  };
  EXPECT_EQ(draw(1), draw(1));
  EXPECT_NE(draw(1), draw(2));
}

TEST(SamplerTest, ExtremeLogitsStayInRange) {
  std::vector<float> logits(1000, -1e30F);
  logits[500] = 1e30F;
  for (const float temperature : {1e-6F, 1.0F, 1e6F}) {
    EXPECT_EQ(Sampler({.temperature = temperature}).pick(logits), 500);
  }
}

}  // namespace
}  // namespace kvq
