// Every operation on a CUDA device against plain double precision. Skipped where there is no
// device.
#include "kvq/runtime/cuda/cuda_ops.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>

#include "kvq/base/half.h"

namespace kvq::cuda {
namespace {

std::vector<float> random_numbers(std::size_t count, unsigned seed = 1) {
  std::mt19937 engine(seed);
  std::normal_distribution<float> normal;
  std::vector<float> numbers(count);
  for (float& number : numbers) number = normal(engine);
  return numbers;
}

class CudaOpsTest : public testing::TestWithParam<InputTerms> {
 protected:
  void SetUp() override {
    auto device = Device::open();
    if (!device) GTEST_SKIP() << device.error().message;
    auto ops = create_cuda_ops(*device, GetParam());
    ASSERT_TRUE(ops) << ops.error().message;
    ops_ = *std::move(ops);
  }

  DeviceFloats on_device(const std::vector<float>& numbers) {
    DeviceFloats memory = ops_->allocate(numbers.size()).value();
    ops_->from_host(numbers.data(), numbers.size(), memory.get());
    return memory;
  }
  std::vector<float> on_host(const DeviceFloats& memory, std::size_t count) {
    const float* numbers = ops_->to_host(memory.get(), count);
    return {numbers, numbers + count};
  }
  // Full of NaN: everything that is read must have been written.
  DeviceFloats output(std::size_t count) {
    return on_device(std::vector<float>(count, std::numeric_limits<float>::quiet_NaN()));
  }
  void expect_finished() {
    const auto failed = ops_->finish();
    ASSERT_TRUE(failed) << failed.error().message;
    EXPECT_FALSE(failed->has_value()) << **failed;
  }

  std::unique_ptr<Ops> ops_;
};

std::string term_name(const testing::TestParamInfo<InputTerms>& test) {
  const char* const names[] = {"float32", "one", "two"};
  return names[static_cast<int>(test.param)];
}

INSTANTIATE_TEST_SUITE_P(AllTerms, CudaOpsTest,
                         testing::Values(InputTerms::kFloat32, InputTerms::kOne, InputTerms::kTwo),
                         term_name);

// Weights that are exact in bf16.
std::vector<BFloat16> random_weights(std::size_t count) {
  std::vector<BFloat16> weights(count);
  const std::vector<float> numbers = random_numbers(count, 7);
  for (std::size_t i = 0; i < count; ++i) weights[i] = to_bfloat16(numbers[i]);
  return weights;
}

struct StackedShape {
  int inputs;
  int first;  // outputs of the parts
  int second;
};

class CudaProductTest : public CudaOpsTest {
 protected:
  void multiply(const StackedShape& shape);
};

INSTANTIATE_TEST_SUITE_P(AllTerms, CudaProductTest,
                         testing::Values(InputTerms::kFloat32, InputTerms::kOne, InputTerms::kTwo),
                         term_name);

TEST_P(CudaProductTest, StacksPartsAddsBiasAndAccumulates) { multiply({136, 48, 17}); }
TEST_P(CudaProductTest, OfSeveralShapes) {
  multiply({64, 16, 16});
  multiply({704, 48, 16});
  multiply({1024 + 64, 32, 64});
}

void CudaProductTest::multiply(const StackedShape& shape) {
  const int inputs = shape.inputs, first_outputs = shape.first, second_outputs = shape.second;
  const int outputs = first_outputs + second_outputs;
  const std::vector<BFloat16> weights = random_weights(std::size_t(outputs) * inputs);
  const std::vector<float> bias = random_numbers(second_outputs, 3);
  const auto* bytes = reinterpret_cast<const std::byte*>(weights.data());
  const TensorRef first{DataType::kBFloat16, {first_outputs, inputs}, bytes};
  const TensorRef second{DataType::kBFloat16,
                         {second_outputs, inputs},
                         bytes + std::ptrdiff_t{2} * first_outputs * inputs};
  const TensorRef bias_tensor{
      DataType::kFloat32, {second_outputs}, reinterpret_cast<const std::byte*>(bias.data())};
  const std::vector<MatrixPart> parts = {{first, {}}, {second, bias_tensor}};
  const auto matrix = ops_->prepare(parts).value();
  const double tolerance = GetParam() == InputTerms::kFloat32 ? 1e-5
                           : GetParam() == InputTerms::kTwo   ? 5e-5
                                                              : 1e-2;
  for (const int rows : {1, 2, 3, 4, 7, 8, 9, 64, 300}) {
    const std::vector<float> input = random_numbers(std::size_t(rows) * inputs, rows);
    const DeviceFloats device_input = on_device(input);
    for (const bool accumulate : {false, true}) {
      const std::vector<float> before = random_numbers(std::size_t(rows) * outputs, 5);
      const DeviceFloats result = accumulate ? on_device(before) : output(before.size());
      ASSERT_TRUE(ops_->multiply(*matrix, device_input.get(), rows, accumulate, result.get()));
      const std::vector<float> numbers = on_host(result, before.size());
      double error = 0;
      double norm = 0;
      for (int row = 0; row < rows; ++row) {
        for (int o = 0; o < outputs; ++o) {
          const std::size_t at = std::size_t(row) * outputs + o;
          double sum = o >= first_outputs ? bias[o - first_outputs] : 0;
          if (accumulate) sum += before[at];
          for (int i = 0; i < inputs; ++i) {
            sum += double(to_float(weights[o * inputs + i])) * input[row * inputs + i];
          }
          error += (numbers[at] - sum) * (numbers[at] - sum);
          norm += sum * sum;
        }
      }
      EXPECT_LT(std::sqrt(error / norm), tolerance) << rows << " rows, accumulate " << accumulate;
    }
  }
  expect_finished();
}

// The rows that the norm leaves for the product are those that it writes.
TEST_P(CudaOpsTest, NormIsMultipliedAndReplayed) {
  constexpr int kRows = 3, kWidth = 264, kOutputs = 16;
  const std::vector<BFloat16> weights = random_weights(kOutputs * kWidth);
  const MatrixPart part{
      {DataType::kBFloat16, {kOutputs, kWidth}, reinterpret_cast<const std::byte*>(weights.data())},
      {}};
  const auto matrix = ops_->prepare({&part, 1}).value();
  const DeviceFloats scale = on_device(random_numbers(kWidth, 2));
  const DeviceFloats input = on_device(random_numbers(kRows * kWidth));
  const DeviceFloats normed = output(kRows * kWidth);
  const DeviceFloats result = output(kRows * kOutputs);
  std::vector<float> first;
  for (int call = 0; call < 4; ++call) {  // run, recorded, replayed twice, on other numbers each
    const std::vector<float> numbers = random_numbers(kRows * kWidth, call);
    ops_->from_host(numbers.data(), numbers.size(), input.get());
    const Status status = ops_->run({1, 2, 3}, [&] {
      ops_->rms_norm(input.get(), scale.get(), 1e-5F, kRows, kWidth, 0, normed.get());
      return ops_->multiply(*matrix, normed.get(), kRows, false, result.get());
    });
    ASSERT_TRUE(status) << status.error().message;
    const std::vector<float> rows = on_host(normed, kRows * kWidth);
    const std::vector<float> products = on_host(result, kRows * kOutputs);
    for (int row = 0; row < kRows; ++row) {
      double squares = 0;
      for (int i = 0; i < kWidth; ++i) squares += std::pow(numbers[row * kWidth + i], 2);
      const double factor = 1 / std::sqrt(squares / kWidth + 1e-5);
      const float* scales = ops_->to_host(scale.get(), kWidth);
      for (int i = 0; i < kWidth; ++i) {
        ASSERT_NEAR(rows[row * kWidth + i], numbers[row * kWidth + i] * factor * scales[i], 1e-5);
      }
      for (int o = 0; o < kOutputs; ++o) {
        double sum = 0;
        for (int i = 0; i < kWidth; ++i) {
          sum += double(to_float(weights[o * kWidth + i])) * rows[row * kWidth + i];
        }
        ASSERT_NEAR(products[row * kOutputs + o], sum, GetParam() == InputTerms::kOne ? 0.3 : 3e-3)
            << call;
      }
    }
  }
  expect_finished();
}

TEST_P(CudaOpsTest, SplitHeadsNormalizesRotatesAndCopies) {
  constexpr int kRows = 5, kQueries = 6, kKv = 2, kDim = 48;
  constexpr int kWidth = (kQueries + 2 * kKv) * kDim;
  const std::vector<float> fused = random_numbers(kRows * kWidth);
  const std::vector<float> cosine = random_numbers(kRows * kDim / 2, 2);
  const std::vector<float> sine = random_numbers(kRows * kDim / 2, 3);
  const std::vector<float> norm = random_numbers(kDim, 4);
  for (const bool normed : {false, true}) {
    const DeviceFloats scale = on_device(norm);
    const HeadShape shape{kQueries, kKv, kDim, normed ? scale.get() : nullptr, nullptr, 1e-5F};
    const DeviceFloats query = output(kRows * kQueries * kDim);
    const DeviceFloats key = output(kRows * kKv * kDim);
    const DeviceFloats value = output(kRows * kKv * kDim);
    ops_->split_heads(shape, on_device(fused).get(), on_device(cosine).get(), on_device(sine).get(),
                      kRows, {query.get(), key.get(), value.get()});
    expect_finished();
    const std::vector<float> queries = on_host(query, kRows * kQueries * kDim);
    const std::vector<float> keys = on_host(key, kRows * kKv * kDim);
    const std::vector<float> values = on_host(value, kRows * kKv * kDim);
    for (int row = 0; row < kRows; ++row) {
      for (int head = 0; head < kQueries + kKv; ++head) {
        const float* from = &fused[row * kWidth + head * kDim];
        double squares = 0;
        for (int i = 0; i < kDim; ++i) squares += from[i] * from[i];
        const double factor = 1 / std::sqrt(squares / kDim + 1e-5);
        const auto number = [&](int i) {
          return normed && head < kQueries ? from[i] * factor * norm[i] : from[i];
        };
        const float* to = head < kQueries ? &queries[(row * kQueries + head) * kDim]
                                          : &keys[(row * kKv + head - kQueries) * kDim];
        for (int i = 0; i < kDim / 2; ++i) {
          const double c = cosine[row * kDim / 2 + i];
          const double s = sine[row * kDim / 2 + i];
          ASSERT_NEAR(to[i], number(i) * c - number(i + kDim / 2) * s, 2e-5);
          ASSERT_NEAR(to[i + kDim / 2], number(i + kDim / 2) * c + number(i) * s, 2e-5);
        }
      }
      for (int i = 0; i < kKv * kDim; ++i) {
        ASSERT_EQ(values[row * kKv * kDim + i], fused[row * kWidth + (kQueries + kKv) * kDim + i]);
      }
    }
  }
}

// A product's terms may be added up by the operation behind it.
TEST_P(CudaOpsTest, ProductsAreReadByNormSiluAndHeads) {
  constexpr int kRows = 3, kInputs = 64, kDim = 16, kOutputs = 4 * kDim;
  const std::vector<BFloat16> weights = random_weights(kOutputs * kInputs);
  const std::vector<float> bias = random_numbers(kOutputs, 4);
  const MatrixPart part{
      {DataType::kBFloat16,
       {kOutputs, kInputs},
       reinterpret_cast<const std::byte*>(weights.data())},
      TensorRef{DataType::kFloat32, {kOutputs}, reinterpret_cast<const std::byte*>(bias.data())}};
  const auto matrix = ops_->prepare({&part, 1}).value();
  const std::vector<float> before = random_numbers(kRows * kOutputs, 8);
  const DeviceFloats input = on_device(random_numbers(kRows * kInputs, 9));
  const auto product = [&](bool accumulate) {
    DeviceFloats result = accumulate ? on_device(before) : output(before.size());
    EXPECT_TRUE(ops_->multiply(*matrix, input.get(), kRows, accumulate, result.get()));
    return result;
  };
  for (const bool accumulate : {false, true}) {
    const std::vector<float> sums = on_host(product(accumulate), kRows * kOutputs);
    const DeviceFloats ones = on_device(std::vector<float>(kOutputs, 1.0F));
    const DeviceFloats normed = output(sums.size());
    const DeviceFloats fused = product(accumulate);
    ops_->rms_norm(fused.get(), ones.get(), 0, kRows, kOutputs, 0, normed.get());
    EXPECT_EQ(on_host(fused, sums.size()), sums);
    const std::vector<float> rows = on_host(normed, sums.size());
    for (int row = 0; row < kRows; ++row) {
      double squares = 0;
      for (int i = 0; i < kOutputs; ++i) squares += std::pow(sums[row * kOutputs + i], 2);
      for (int i = 0; i < kOutputs; ++i) {
        ASSERT_NEAR(rows[row * kOutputs + i],
                    sums[row * kOutputs + i] / std::sqrt(squares / kOutputs), 1e-5);
      }
    }
  }
  const std::vector<float> sums = on_host(product(false), kRows * kOutputs);
  constexpr int kHalf = kOutputs / 2;
  const DeviceFloats gated = output(kRows * kHalf);
  ops_->silu_multiply(product(false).get(), kRows, kHalf, gated.get());
  const std::vector<float> found = on_host(gated, kRows * kHalf);
  for (int i = 0; i < kRows * kHalf; ++i) {
    const double gate = sums[i / kHalf * kOutputs + i % kHalf];
    ASSERT_NEAR(found[i],
                gate / (1 + std::exp(-gate)) * sums[i / kHalf * kOutputs + kHalf + i % kHalf],
                1e-4);
  }
  const DeviceFloats query = output(kRows * 2 * kDim);
  const DeviceFloats key = output(kRows * kDim);
  const DeviceFloats value = output(kRows * kDim);
  const DeviceFloats ones = on_device(std::vector<float>(kRows * kDim / 2, 1.0F));
  const DeviceFloats zeros = on_device(std::vector<float>(kRows * kDim / 2, 0.0F));
  ops_->split_heads({2, 1, kDim, nullptr, nullptr, 0}, product(false).get(), ones.get(),
                    zeros.get(), kRows, {query.get(), key.get(), value.get()});
  const std::vector<float> keys = on_host(key, kRows * kDim);
  const std::vector<float> values = on_host(value, kRows * kDim);
  for (int i = 0; i < kRows * kDim; ++i) {
    ASSERT_EQ(keys[i], sums[i / kDim * kOutputs + 2 * kDim + i % kDim]);
    ASSERT_EQ(values[i], sums[i / kDim * kOutputs + 3 * kDim + i % kDim]);
  }
  expect_finished();
}

TEST_P(CudaOpsTest, NormOfLongRows) {
  constexpr int kRows = 2, kWidth = 5000;
  const std::vector<float> numbers = random_numbers(kRows * kWidth);
  const DeviceFloats ones = on_device(std::vector<float>(kWidth, 1.0F));
  const DeviceFloats result = output(numbers.size());
  ops_->rms_norm(on_device(numbers).get(), ones.get(), 0, kRows, kWidth, 0, result.get());
  const std::vector<float> rows = on_host(result, numbers.size());
  for (int row = 0; row < kRows; ++row) {
    double squares = 0;
    for (int i = 0; i < kWidth; ++i) squares += std::pow(numbers[row * kWidth + i], 2);
    for (int i = 0; i < kWidth; ++i) {
      ASSERT_NEAR(rows[row * kWidth + i], numbers[row * kWidth + i] / std::sqrt(squares / kWidth),
                  1e-5);
    }
  }
  expect_finished();
}

TEST_P(CudaOpsTest, SmallOperations) {
  constexpr int kRows = 4, kWidth = 520;
  const std::vector<float> fused = random_numbers(kRows * 2 * kWidth);
  const DeviceFloats device_fused = on_device(fused);
  const DeviceFloats result = output(kRows * kWidth);
  ops_->silu_multiply(device_fused.get(), kRows, kWidth, result.get());
  const std::vector<float> gated = on_host(result, kRows * kWidth);
  for (int row = 0; row < kRows; ++row) {
    for (int i = 0; i < kWidth; ++i) {
      const double gate = fused[row * 2 * kWidth + i];
      ASSERT_NEAR(gated[row * kWidth + i],
                  gate / (1 + std::exp(-gate)) * fused[row * 2 * kWidth + kWidth + i], 1e-5);
    }
  }
  const std::vector<int> rows = {3, 0, 3};
  ops_->gather_rows(device_fused.get(), rows, kWidth, result.get());
  const std::vector<float> gathered = on_host(result, rows.size() * kWidth);
  for (std::size_t i = 0; i < gathered.size(); ++i) {
    ASSERT_EQ(gathered[i], fused[rows[i / kWidth] * kWidth + i % kWidth]);
  }
  const std::vector<std::int64_t> positions = {0, 1, 100000};
  const std::vector<float> frequencies = {1.0F, 0.01F, 0.5F};
  const DeviceFloats cosine = output(9);
  const DeviceFloats sine = output(9);
  ops_->rotary_table(positions, frequencies, cosine.get(), sine.get());
  const std::vector<float> cosines = on_host(cosine, 9);
  const std::vector<float> sines = on_host(sine, 9);
  for (int i = 0; i < 9; ++i) {
    const float angle = static_cast<float>(positions[i / 3]) * frequencies[i % 3];
    ASSERT_NEAR(cosines[i], std::cos(angle), 1e-6);
    ASSERT_NEAR(sines[i], std::sin(angle), 1e-6);
  }
  std::vector<float> scores(2 * 1000, -1.0F);
  scores[700] = scores[800] = 0.25F;
  scores[1000] = -0.5F;
  const auto found = ops_->largest(on_device(scores).get(), 2, 1000);
  EXPECT_EQ(found[0], 700);
  EXPECT_EQ(found[1], 0);
  expect_finished();
}

TEST_P(CudaOpsTest, EmbedReadsRowsOfEveryType) {
  constexpr int kWidth = 24;
  const std::vector<BFloat16> narrow = random_weights(20 * kWidth);
  const std::vector<float> wide = random_numbers(20 * kWidth);
  const TensorRef tables[] = {
      {DataType::kBFloat16, {20, kWidth}, reinterpret_cast<const std::byte*>(narrow.data())},
      {DataType::kFloat32, {20, kWidth}, reinterpret_cast<const std::byte*>(wide.data())}};
  const std::vector<int> tokens = {19, 0, 7, 7};
  for (const TensorRef& tensor : tables) {
    const auto table = ops_->prepare_table(tensor).value();
    const DeviceFloats rows = output(tokens.size() * kWidth);
    ops_->embed(*table, tokens, rows.get());
    const std::vector<float> numbers = on_host(rows, tokens.size() * kWidth);
    for (std::size_t i = 0; i < numbers.size(); ++i) {
      const std::size_t at = std::size_t(tokens[i / kWidth]) * kWidth + i % kWidth;
      ASSERT_EQ(numbers[i], tensor.type == DataType::kFloat32 ? wide[at] : to_float(narrow[at]));
    }
  }
}

TEST_P(CudaOpsTest, FinishTellsTheFirstCheckThatFailed) {
  constexpr int kRows = 3, kWidth = 64;
  std::vector<float> numbers = random_numbers(kRows * kWidth);
  const DeviceFloats weight = on_device(std::vector<float>(kWidth, 1.0F));
  const DeviceFloats result = output(kRows * kWidth);
  const DeviceFloats good = on_device(numbers);
  numbers.back() = std::numeric_limits<float>::infinity();
  const DeviceFloats bad = on_device(numbers);
  ops_->rms_norm(good.get(), weight.get(), 0, kRows, kWidth, 1, result.get());
  EXPECT_TRUE(ops_->all_finite(bad.get(), numbers.size() - 1, 2));
  expect_finished();
  EXPECT_TRUE(ops_->all_finite(bad.get(), numbers.size(), 9));
  ops_->rms_norm(bad.get(), weight.get(), 0, kRows, kWidth, 5, result.get());
  EXPECT_EQ(ops_->finish().value(), 5);
  expect_finished();
}

}  // namespace
}  // namespace kvq::cuda
