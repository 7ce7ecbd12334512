#include "kvq/runtime/cpu/row_kernels.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>
#include <vector>

namespace kvq {
namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr int kCounts[] = {1, 7, 16, 31, 64, 384, 1001};

std::vector<float> random_row(int count, float deviation = 1) {
  static std::mt19937 random(7);
  std::normal_distribution<float> normal(0, deviation);
  std::vector<float> row(static_cast<std::size_t>(count));
  for (float& value : row) value = normal(random);
  return row;
}

class RowKernelsTest : public testing::TestWithParam<Isa> {
 protected:
  const RowKernels& kernels_ = row_kernels(GetParam());
};

INSTANTIATE_TEST_SUITE_P(AllIsas, RowKernelsTest, testing::ValuesIn(runnable_isas()),
                         [](const auto& test) { return std::string(name(test.param)); });

TEST_P(RowKernelsTest, RmsNormMatchesDoubles) {
  for (const int count : kCounts) {
    const auto input = random_row(count, 3);
    const auto weight = random_row(count);
    std::vector<float> output(input.size());
    EXPECT_TRUE(kernels_.rms_norm(input.data(), weight.data(), 1e-5F, count, output.data()));
    double squares = 0;
    for (const float value : input) squares += double{value} * value;
    const double scale = 1 / std::sqrt(squares / count + double{1e-5F});
    for (std::size_t i = 0; i < input.size(); ++i) {
      const double expected = input[i] * scale * weight[i];
      EXPECT_NEAR(output[i], expected, 1e-6 * std::abs(expected) + 1e-12) << count << ' ' << i;
    }
  }
}

TEST_P(RowKernelsTest, RmsNormReportsWhatIsNotFinite) {
  for (const float bad : {kNan, kInfinity, -kInfinity}) {
    auto input = random_row(65);
    input[64] = bad;
    std::vector<float> output(input.size());
    EXPECT_FALSE(kernels_.rms_norm(input.data(), input.data(), 1e-5F, 65, output.data()));
  }
}

TEST_P(RowKernelsTest, RotateTurnsHalfSplitPairsInPlaceToo) {
  for (const int head_dim : {16, 64, 80, 128}) {
    auto head = random_row(head_dim);
    const auto angle = random_row(head_dim / 2, 10);
    std::vector<float> cosine, sine, output(head.size());
    for (const float value : angle) {
      cosine.push_back(std::cos(value));
      sine.push_back(std::sin(value));
    }
    kernels_.rotate(head.data(), cosine.data(), sine.data(), head_dim, output.data());
    const std::size_t half = head.size() / 2;
    for (std::size_t i = 0; i < half; ++i) {
      EXPECT_NEAR(output[i], double{head[i]} * cosine[i] - double{head[i + half]} * sine[i], 2e-6);
      EXPECT_NEAR(output[i + half], double{head[i + half]} * cosine[i] + double{head[i]} * sine[i],
                  2e-6);
    }
    kernels_.rotate(head.data(), cosine.data(), sine.data(), head_dim, head.data());
    EXPECT_EQ(head, output);
  }
}

TEST_P(RowKernelsTest, SiluMultiplyMatchesDoublesOverTheWholeRange) {
  std::vector<float> gate;
  for (float value = -120; value <= 120; value += 0.037F) gate.push_back(value);
  gate.insert(gate.end(), {0.0F, -0.0F, 1e-30F, -1e-30F, 1e37F});
  const auto up = random_row(static_cast<int>(gate.size()));
  std::vector<float> output(gate.size());
  kernels_.silu_multiply(gate.data(), up.data(), static_cast<int>(gate.size()), output.data());
  for (std::size_t i = 0; i < gate.size(); ++i) {
    const double expected = gate[i] / (1 + std::exp(-double{gate[i]})) * up[i];
    EXPECT_NEAR(output[i], expected, 1e-6 * std::abs(expected) + 1e-34) << gate[i];
  }
}

TEST_P(RowKernelsTest, SiluMultiplyKeepsNan) {
  std::vector<float> gate(40, 1.0F), up(40, 1.0F), output(40);
  gate[3] = kNan;
  up[37] = kNan;
  kernels_.silu_multiply(gate.data(), up.data(), 40, output.data());
  EXPECT_TRUE(std::isnan(output[3]));
  EXPECT_TRUE(std::isnan(output[37]));
  EXPECT_FALSE(std::isnan(output[4]));
}

TEST_P(RowKernelsTest, SplitKeepsSixteenSignificantBits) {
  for (const int count : kCounts) {
    auto input = random_row(count, 100);
    input[0] = 0;
    std::vector<BFloat16> high(input.size()), low(input.size());
    kernels_.split(input.data(), count, high.data(), low.data());
    for (std::size_t i = 0; i < input.size(); ++i) {
      const double sum = double{to_float(high[i])} + to_float(low[i]);
      EXPECT_LE(std::abs(sum - input[i]), std::ldexp(std::abs(input[i]), -16)) << input[i];
      EXPECT_EQ(low[i], to_bfloat16(input[i] - to_float(high[i])));
    }
  }
}

TEST_P(RowKernelsTest, SplitKeepsNanAndInfinity) {
  const std::vector<float> input = {kNan, -kNan, kInfinity, -kInfinity};
  std::vector<BFloat16> high(4), low(4);
  kernels_.split(input.data(), 4, high.data(), low.data());
  for (std::size_t i = 0; i < 4; ++i) {
    EXPECT_FALSE(std::isfinite(to_float(high[i]) + to_float(low[i]))) << input[i];
  }
}

TEST_P(RowKernelsTest, FinishProductAddsWhatIsAsked) {
  for (const int count : kCounts) {
    const auto high = random_row(count);
    const auto low = random_row(count, 0.01F);
    const auto bias = random_row(count);
    const auto before = random_row(count);
    for (int terms = 0; terms < 8; ++terms) {
      const bool with_low = (terms & 1) != 0;
      const bool with_bias = (terms & 2) != 0;
      const bool accumulate = (terms & 4) != 0;
      auto output = before;
      kernels_.finish_product({high.data(), with_low ? low.data() : nullptr},
                              with_bias ? bias.data() : nullptr, accumulate, count, output.data());
      for (std::size_t i = 0; i < high.size(); ++i) {
        const double expected = double{high[i]} + (with_low ? low[i] : 0.0F) +
                                (with_bias ? bias[i] : 0.0F) + (accumulate ? before[i] : 0.0F);
        EXPECT_NEAR(output[i], expected, 2e-6) << terms;
      }
    }
  }
}

TEST_P(RowKernelsTest, AllFiniteFindsOneBadNumberAnywhere) {
  for (const int count : kCounts) {
    auto row = random_row(count, 1e37F);
    EXPECT_TRUE(kernels_.all_finite(row.data(), count));
    for (const int position : {0, count / 2, count - 1}) {
      for (const float bad : {kNan, kInfinity, -kInfinity}) {
        auto damaged = row;
        damaged[static_cast<std::size_t>(position)] = bad;
        EXPECT_FALSE(kernels_.all_finite(damaged.data(), count));
      }
    }
  }
}

}  // namespace
}  // namespace kvq
