// Against transformers, float32: models/demo-llama/golden.json and tests/fixtures/checkpoints.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <nlohmann/json.hpp>

#include "kvq/base/file.h"
#include "kvq/runtime/cpu/cpu_ops.h"
#include "kvq/runtime/generate.h"
#include "kvq/runtime/test_models.h"

namespace kvq {
namespace {

nlohmann::json read_golden(const std::filesystem::path& directory) {
  return nlohmann::json::parse(read_file(directory / "golden.json").value());
}

float largest(std::span<const float> logits) {
  float result = 0;
  for (const float logit : logits) result = std::max(result, std::abs(logit));
  return result;
}

struct Setting {
  ComputeType compute;
  Isa isa;
  Device device = Device::kCpu;
};

std::vector<Setting> settings() {
  std::vector<Setting> result;
  for (const Isa isa : runnable_isas()) {
    result.push_back({ComputeType::kFloat32, isa});
    if (multiplies_bfloat16()) result.push_back({ComputeType::kBFloat16, isa});
  }
  if (Engine::load(demo_model(), {.device = Device::kCuda})) {
    for (const ComputeType compute : {ComputeType::kFloat32, ComputeType::kBFloat16}) {
      result.push_back({compute, host_isa(), Device::kCuda});
    }
  }
  return result;
}

class GoldenTest : public testing::TestWithParam<Setting> {
 protected:
  static Engine load(const std::filesystem::path& directory) {
    auto engine = Engine::load(directory, {.device = GetParam().device,
                                           .threads = 2,
                                           .compute = GetParam().compute,
                                           .isa = GetParam().isa});
    if (!engine) ADD_FAILURE() << engine.error().message;
    return std::move(engine).value();
  }
};

INSTANTIATE_TEST_SUITE_P(
    AllSettings, GoldenTest, testing::ValuesIn(settings()), [](const auto& test) {
      const bool bfloat16 = test.param.compute == ComputeType::kBFloat16;
      return std::string(bfloat16 ? "bfloat16_" : "float32_") +
             (test.param.device == Device::kCuda ? "cuda" : std::string(name(test.param.isa)));
    });

TEST_P(GoldenTest, DemoModelHasTheReferenceLikelihoodsAndLogits) {
  Engine engine = load(demo_model());
  const auto spec = make_spec(engine);
  const auto vocabulary = static_cast<std::size_t>(engine.config().vocabulary);
  for (const auto& entry : read_golden(demo_model())) {
    const auto ids = entry["ids"].get<std::vector<int>>();
    Sequence sequence = make_sequence(engine, spec);
    const std::vector<float> logits = forward(engine, sequence, ids, LogitRows::kAll);
    ASSERT_EQ(logits.size(), ids.size() * vocabulary);
    double sum = 0;
    for (std::size_t i = 0; i + 1 < ids.size(); ++i) {
      sum += negative_log_likelihood({logits.data() + i * vocabulary, vocabulary}, ids[i + 1]);
    }
    EXPECT_NEAR(sum / static_cast<double>(ids.size() - 1), entry["nll"].get<double>(), 1e-3)
        << ids.size() << " tokens";
    const float* last = logits.data() + (ids.size() - 1) * vocabulary;
    const auto first = entry["last_logits_first16"].get<std::vector<float>>();
    for (std::size_t i = 0; i < first.size(); ++i) EXPECT_NEAR(last[i], first[i], 5e-3);
    for (const auto& top : entry["last_logits_top5"]) {
      EXPECT_NEAR(last[top[0].get<std::size_t>()], top[1].get<float>(), 5e-3);
    }
  }
}

// The reference's caches are float32, ours fp16: where two tokens are nearly equal, either may win,
// and the continuation is compared up to there.
TEST_P(GoldenTest, DemoModelContinuesGreedilyAsTheReference) {
  constexpr float kTie = 5e-3F;
  Engine engine = load(demo_model());
  const auto vocabulary = static_cast<std::size_t>(engine.config().vocabulary);
  std::vector<std::vector<int>> prompts;
  std::vector<std::vector<int>> expected;
  std::vector<std::size_t> decided;  // tokens before the first tie
  for (const auto& entry : read_golden(demo_model())) {
    prompts.push_back(entry["ids"]);
    expected.push_back(entry["greedy"]);
    std::vector<int> tokens = prompts.back();
    tokens.insert(tokens.end(), expected.back().begin(), expected.back().end());
    Sequence sequence = make_sequence(engine, make_spec(engine));
    const std::vector<float> logits = forward(engine, sequence, tokens, LogitRows::kAll);
    decided.push_back(expected.back().size());
    for (std::size_t i = 0; i < expected.back().size(); ++i) {
      const auto row = logits.begin() +
                       static_cast<std::ptrdiff_t>((prompts.back().size() - 1 + i) * vocabulary);
      std::vector<float> sorted(row, row + static_cast<std::ptrdiff_t>(vocabulary));
      const float golden = sorted[static_cast<std::size_t>(expected.back()[i])];
      std::ranges::partial_sort(sorted, sorted.begin() + 2, std::greater());
      EXPECT_LT(sorted[0] - golden, kTie) << prompts.size() - 1 << ", token " << i;
      if (sorted[0] - sorted[1] < kTie) decided.back() = std::min(decided.back(), i);
    }
  }
  GenerateOptions options;
  options.max_new_tokens = static_cast<int>(expected.front().size());
  options.ignore_stop_tokens = true;
  const auto result = generate(engine, prompts, make_spec(engine), PagePool::create(0), options);
  ASSERT_TRUE(result) << result.error().message;
  for (std::size_t i = 0; i < prompts.size(); ++i) {
    const auto count = static_cast<std::ptrdiff_t>(decided[i]);
    EXPECT_TRUE(
        std::equal(expected[i].begin(), expected[i].begin() + count, result->tokens[i].begin()))
        << i;
  }
  EXPECT_GE(std::ranges::count(decided, expected.front().size()), 4);
}

TEST_P(GoldenTest, TinyModelsHaveTheReferenceLogits) {
  // Attention on a device rounds queries and weights to fp16.
  const double tolerance = GetParam().device == Device::kCuda ? 3e-3 : 1e-3;
  for (const std::string& model : tiny_models()) {
    // The others' weights are not bf16, so rounding them shows.
    const bool is_bfloat16 = model == "llama3.1-tiny" || model == "llama-bias-tiny";
    if (GetParam().compute == ComputeType::kBFloat16 && !is_bfloat16) continue;
    Engine engine = load(tiny_model(model));
    const auto spec = make_spec(engine);
    const auto vocabulary = static_cast<std::size_t>(engine.config().vocabulary);
    const auto golden = read_golden(tiny_model(model));
    ASSERT_FALSE(golden["inputs"].empty());
    for (const auto& input : golden["inputs"]) {
      const auto ids = input["ids"].get<std::vector<int>>();
      Sequence sequence = make_sequence(engine, spec);
      const std::vector<float> logits = forward(engine, sequence, ids, LogitRows::kAll);
      ASSERT_EQ(logits.size(), ids.size() * vocabulary);
      for (const auto& [position, values] : input["rows"].items()) {
        const std::span<const float> row(logits.data() + std::stoul(position) * vocabulary,
                                         vocabulary);
        EXPECT_LT(relative_difference(row, values.get<std::vector<float>>()), tolerance)
            << model << ", " << ids.size() << " tokens, row " << position;
      }
      for (std::size_t i = 0; i + 1 < ids.size(); ++i) {
        const std::span<const float> row(logits.data() + i * vocabulary, vocabulary);
        EXPECT_NEAR(-negative_log_likelihood(row, ids[i + 1]),
                    input["next_log_probability"][i].get<double>(), 2e-3 * largest(row))
            << model << ", token " << i;
      }
    }
  }
}

}  // namespace
}  // namespace kvq
