#include "kvq/eval/distribution.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

namespace kvq {
namespace {

std::vector<float> random_logits(int count, float spread, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> logits(static_cast<std::size_t>(count));
  for (float& logit : logits) logit = spread * normal(random);
  return logits;
}

double naive_log_sum_exp(const std::vector<float>& logits) {
  const double top = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (const float logit : logits) sum += std::exp(static_cast<double>(logit) - top);
  return top + std::log(sum);
}

// Lengths around the lanes and the blocks of the sums, spreads from flat to beyond exp's range.
const int kCounts[] = {1, 2, 15, 16, 17, 31, 33, 1008, 1024, 1025, 1040, 2049, 8192, 32003};
const float kSpreads[] = {0, 0.01F, 3, 80};

TEST(Distribution, LogSumExpAgreesWithDouble) {
  for (const int count : kCounts) {
    for (const float spread : kSpreads) {
      const auto logits = random_logits(count, spread, static_cast<unsigned>(count));
      const double expected = naive_log_sum_exp(logits);
      ASSERT_NEAR(log_sum_exp(logits.data(), count), expected, 1e-6 * (1 + std::abs(expected)))
          << count << " logits, spread " << spread;
    }
  }
}

TEST(Distribution, SoftmaxAgreesWithDouble) {
  for (const int count : kCounts) {
    for (const float spread : kSpreads) {
      const auto logits = random_logits(count, spread, 7U + static_cast<unsigned>(count));
      std::vector<float> probabilities(logits.size());
      const double log_sum = softmax(logits.data(), count, probabilities.data());
      ASSERT_EQ(log_sum, log_sum_exp(logits.data(), count));
      const double exact = naive_log_sum_exp(logits);
      for (std::size_t i = 0; i < logits.size(); ++i) {
        const double expected = std::exp(static_cast<double>(logits[i]) - exact);
        // logits[i] - top is rounded to float.
        ASSERT_NEAR(probabilities[i], expected, 1e-5 * expected + 1e-30) << i << " of " << count;
      }
    }
  }
}

TEST(Distribution, KlAgreesWithDouble) {
  for (const int count : kCounts) {
    const auto first = random_logits(count, 4, 1);
    auto second = random_logits(count, 0.1F, 2);
    for (std::size_t i = 0; i < second.size(); ++i) second[i] += first[i];
    std::vector<float> probabilities(first.size());
    const double first_sum = softmax(first.data(), count, probabilities.data());
    const double second_sum = log_sum_exp(second.data(), count);
    const double kl =
        expected_difference(probabilities.data(), first.data(), second.data(), count) - first_sum +
        second_sum;
    const double first_exact = naive_log_sum_exp(first);
    const double second_exact = naive_log_sum_exp(second);
    double expected = 0;
    for (std::size_t i = 0; i < first.size(); ++i) {
      const double p = static_cast<double>(first[i]) - first_exact;
      const double q = static_cast<double>(second[i]) - second_exact;
      expected += std::exp(p) * (p - q);
    }
    ASSERT_NEAR(kl, expected, 2e-6) << count;
  }
}

TEST(Distribution, ArgMaxTakesTheFirstOfEqualMaxima) {
  for (const int count : kCounts) {
    auto logits = random_logits(count, 1, 3);
    for (const int place : {0, count / 3, count - 1}) {
      auto marked = logits;
      marked[static_cast<std::size_t>(place)] = 100;
      marked.back() = 100;
      ASSERT_EQ(arg_max(marked.data(), count), place) << count;
    }
  }
}

TEST(Distribution, NanIsNotHidden) {
  for (const int place : {0, 5, 39}) {
    auto logits = random_logits(40, 1, 4);
    logits[static_cast<std::size_t>(place)] = std::numeric_limits<float>::quiet_NaN();
    EXPECT_TRUE(std::isnan(log_sum_exp(logits.data(), 40))) << place;
  }
  const std::vector<float> nothing(3, std::numeric_limits<float>::quiet_NaN());
  EXPECT_EQ(arg_max(nothing.data(), 3), -1);
}

}  // namespace
}  // namespace kvq
