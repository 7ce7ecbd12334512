#include "kvq/runtime/cpu/cpu_ops.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <random>
#include <vector>

#include "kvq/base/half.h"

namespace kvq {
namespace {

std::vector<float> random_numbers(std::size_t count, float deviation = 1) {
  static std::mt19937 random(11);
  std::normal_distribution<float> normal(0, deviation);
  std::vector<float> numbers(count);
  for (float& number : numbers) number = normal(random);
  return numbers;
}

// Numbers that bf16 holds exactly, so that both compute types have the same weights.
std::vector<float> random_weights(std::size_t count) {
  auto numbers = random_numbers(count, 0.05F);
  for (float& number : numbers) number = to_float(to_bfloat16(number));
  return numbers;
}

TensorRef tensor_of(const std::vector<float>& numbers, std::vector<std::int64_t> shape) {
  return {DataType::kFloat32, std::move(shape), reinterpret_cast<const std::byte*>(numbers.data())};
}

struct Setting {
  bool bfloat16;
  int threads;
};

class CpuOpsTest : public testing::TestWithParam<Setting> {
 protected:
  void SetUp() override {
    if (GetParam().bfloat16 && !multiplies_bfloat16()) GTEST_SKIP() << "no bf16 instructions";
    auto ops = create_cpu_ops(GetParam().bfloat16, host_isa(), threads_);
    ASSERT_TRUE(ops) << ops.error().message;
    ops_ = std::move(*ops);
  }

  DeviceFloats on_device(const std::vector<float>& numbers) {
    auto memory = ops_->allocate(numbers.size());
    EXPECT_TRUE(memory);
    std::memcpy(memory->get(), numbers.data(), numbers.size() * sizeof(float));
    return *memory;
  }

  ThreadPool threads_{GetParam().threads};
  std::unique_ptr<Ops> ops_;
};

INSTANTIATE_TEST_SUITE_P(AllTypes, CpuOpsTest,
                         testing::Values(Setting{false, 1}, Setting{false, 3}, Setting{true, 1},
                                         Setting{true, 3}),
                         [](const auto& test) {
                           return std::string(test.param.bfloat16 ? "bfloat16" : "float32") + "_" +
                                  std::to_string(test.param.threads);
                         });

// Every tile size, odd shapes, stacked parts with and without bias, with and without accumulation.
TEST_P(CpuOpsTest, MultiplyMatchesDoubles) {
  struct Case {
    int inputs;
    std::vector<int> outputs;
  };
  for (const Case& shape :
       {Case{16, {16}}, Case{50, {37}}, Case{384, {100, 30, 30}}, Case{130, {700, 700}}}) {
    const int total = std::reduce(shape.outputs.begin(), shape.outputs.end());
    const auto inputs = static_cast<std::size_t>(shape.inputs);
    const auto outputs = static_cast<std::size_t>(total);
    const auto weights = random_weights(inputs * outputs);
    const auto bias = random_numbers(outputs);
    for (const bool with_bias : {false, true}) {
      std::vector<MatrixPart> parts;
      std::size_t first = 0;
      for (const int rows : shape.outputs) {
        MatrixPart part;
        part.weight = {DataType::kFloat32,
                       {rows, shape.inputs},
                       reinterpret_cast<const std::byte*>(weights.data() + first * inputs)};
        if (with_bias) {
          part.bias = {
              DataType::kFloat32, {rows}, reinterpret_cast<const std::byte*>(bias.data() + first)};
        }
        parts.push_back(part);
        first += static_cast<std::size_t>(rows);
      }
      auto matrix = ops_->prepare(parts);
      ASSERT_TRUE(matrix) << matrix.error().message;
      ASSERT_EQ((*matrix)->outputs(), total);
      for (const int rows : {1, 2, 3, 5, 8, 11, 33, 64, 65, 150}) {
        const auto count = static_cast<std::size_t>(rows);
        const auto input = random_numbers(count * inputs);
        const auto before = random_numbers(count * outputs);
        const bool accumulate = rows % 2 == 1;
        const DeviceFloats output = on_device(before);
        const Status status =
            ops_->multiply(**matrix, on_device(input).get(), rows, accumulate, output.get());
        ASSERT_TRUE(status) << status.error().message;
        double worst = 0;
        for (std::size_t row = 0; row < count; ++row) {
          for (std::size_t column = 0; column < outputs; ++column) {
            double expected = with_bias ? bias[column] : 0;
            if (accumulate) expected += before[row * outputs + column];
            double magnitude = 0;
            for (std::size_t i = 0; i < inputs; ++i) {
              const double term = double{input[row * inputs + i]} * weights[column * inputs + i];
              expected += term;
              magnitude += term * term;
            }
            const double error = std::abs(output.get()[row * outputs + column] - expected);
            worst = std::max(worst, error / (std::sqrt(magnitude) + std::abs(expected)));
          }
        }
        EXPECT_LT(worst, GetParam().bfloat16 ? 3e-5 : 4e-6)
            << shape.inputs << " inputs, " << total << " outputs, " << rows << " rows";
      }
    }
  }
}

TEST_P(CpuOpsTest, EmbedReadsRowsOfEveryType) {
  const auto numbers = random_weights(20 * 24);
  std::vector<BFloat16> narrow;
  for (const float number : numbers) narrow.push_back(to_bfloat16(number));
  const TensorRef wide_table = tensor_of(numbers, {20, 24});
  const TensorRef narrow_table = {
      DataType::kBFloat16, {20, 24}, reinterpret_cast<const std::byte*>(narrow.data())};
  const std::vector<int> tokens = {19, 0, 7, 7};
  for (const TensorRef& table : {wide_table, narrow_table}) {
    const DeviceFloats output = on_device(std::vector<float>(tokens.size() * 24));
    ops_->embed(*ops_->prepare_table(table).value(), tokens, output.get());
    for (std::size_t row = 0; row < tokens.size(); ++row) {
      for (std::size_t i = 0; i < 24; ++i) {
        EXPECT_EQ(output.get()[row * 24 + i],
                  numbers[static_cast<std::size_t>(tokens[row]) * 24 + i]);
      }
    }
  }
}

TEST_P(CpuOpsTest, SplitHeadsNormalizesRotatesAndCopies) {
  constexpr int kRows = 90, kHeadDim = 32, kQueryHeads = 6, kKvHeads = 2, kHalf = kHeadDim / 2;
  constexpr int kWidth = (kQueryHeads + 2 * kKvHeads) * kHeadDim;
  const auto fused = random_numbers(kRows * kWidth);
  const DeviceFloats query_norm = on_device(random_numbers(kHeadDim));
  const DeviceFloats key_norm = on_device(random_numbers(kHeadDim));
  std::vector<std::int64_t> positions(kRows);
  std::iota(positions.begin(), positions.end(), 100);
  std::vector<float> frequencies;
  for (int i = 0; i < kHalf; ++i) frequencies.push_back(std::pow(10000.0F, -float(i) / kHalf));
  const DeviceFloats cosine = on_device(std::vector<float>(kRows * kHalf));
  const DeviceFloats sine = on_device(std::vector<float>(kRows * kHalf));
  ops_->rotary_table(positions, frequencies, cosine.get(), sine.get());

  for (const bool norm : {false, true}) {
    const HeadShape shape = {kQueryHeads,
                             kKvHeads,
                             kHeadDim,
                             norm ? query_norm.get() : nullptr,
                             norm ? key_norm.get() : nullptr,
                             1e-6F};
    const DeviceFloats query = on_device(std::vector<float>(kRows * kQueryHeads * kHeadDim));
    const DeviceFloats key = on_device(std::vector<float>(kRows * kKvHeads * kHeadDim));
    const DeviceFloats value = on_device(std::vector<float>(kRows * kKvHeads * kHeadDim));
    ops_->split_heads(shape, on_device(fused).get(), cosine.get(), sine.get(), kRows,
                      {query.get(), key.get(), value.get()});
    for (int row = 0; row < kRows; ++row) {
      for (int head = 0; head < kQueryHeads + 2 * kKvHeads; ++head) {
        const float* input = fused.data() + (row * (kQueryHeads + 2 * kKvHeads) + head) * kHeadDim;
        const bool is_query = head < kQueryHeads;
        if (head >= kQueryHeads + kKvHeads) {
          const int kv_head = head - kQueryHeads - kKvHeads;
          const float* output = value.get() + (row * kKvHeads + kv_head) * kHeadDim;
          EXPECT_TRUE(std::equal(input, input + kHeadDim, output));
          continue;
        }
        const float* output = is_query
                                  ? query.get() + (row * kQueryHeads + head) * kHeadDim
                                  : key.get() + (row * kKvHeads + head - kQueryHeads) * kHeadDim;
        double squares = 0;
        for (int i = 0; i < kHeadDim; ++i) squares += double{input[i]} * input[i];
        const float* weight = is_query ? query_norm.get() : key_norm.get();
        const auto normalized = [&](int i) {
          return norm ? input[i] * weight[i] / std::sqrt(squares / kHeadDim + 1e-6) : input[i];
        };
        for (int i = 0; i < kHalf; ++i) {
          const double angle = double(positions[std::size_t(row)]) * frequencies[std::size_t(i)];
          const double first = normalized(i);
          const double second = normalized(i + kHalf);
          EXPECT_NEAR(output[i], first * std::cos(angle) - second * std::sin(angle), 1e-4);
          EXPECT_NEAR(output[i + kHalf], second * std::cos(angle) + first * std::sin(angle), 1e-4);
        }
      }
    }
  }
}

TEST_P(CpuOpsTest, RmsNormAndSiluRunOverManyRows) {
  constexpr int kRows = 200, kWidth = 96;
  const DeviceFloats input = on_device(random_numbers(kRows * kWidth));
  const DeviceFloats weight = on_device(std::vector<float>(kWidth, 2.0F));
  const DeviceFloats output = on_device(std::vector<float>(kRows * kWidth));
  EXPECT_TRUE(ops_->rms_norm(input.get(), weight.get(), 0, kRows, kWidth, 0, output.get()));
  for (int row = 0; row < kRows; ++row) {
    double squares = 0;
    for (int i = 0; i < kWidth; ++i) squares += std::pow(output.get()[row * kWidth + i], 2);
    EXPECT_NEAR(squares / kWidth, 4, 1e-4);
  }
  ops_->silu_multiply(input.get(), kRows, kWidth / 2, output.get());
  for (int i = 0; i < kRows * kWidth / 2; ++i) {
    const int row = i / (kWidth / 2);
    const double gate = input.get()[row * kWidth + i % (kWidth / 2)];
    const double up = input.get()[row * kWidth + kWidth / 2 + i % (kWidth / 2)];
    EXPECT_NEAR(output.get()[i], gate / (1 + std::exp(-gate)) * up, 1e-5);
  }
  input.get()[kRows * kWidth - 1] = NAN;
  EXPECT_FALSE(ops_->rms_norm(input.get(), weight.get(), 0, kRows, kWidth, 0, output.get()));
  EXPECT_FALSE(ops_->all_finite(input.get(), kRows * kWidth, 0));
  EXPECT_TRUE(ops_->all_finite(input.get(), kRows * kWidth - 1, 0));
}

TEST_P(CpuOpsTest, GatherRowsCopiesThemInOrder) {
  const auto numbers = random_numbers(10 * 5);
  const DeviceFloats output = on_device(std::vector<float>(3 * 5));
  ops_->gather_rows(on_device(numbers).get(), std::vector<int>{9, 0, 4}, 5, output.get());
  EXPECT_TRUE(std::equal(output.get(), output.get() + 5, numbers.begin() + 45));
  EXPECT_TRUE(std::equal(output.get() + 5, output.get() + 10, numbers.begin()));
  EXPECT_TRUE(std::equal(output.get() + 10, output.get() + 15, numbers.begin() + 20));
}

}  // namespace
}  // namespace kvq
