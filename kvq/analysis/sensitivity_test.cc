#include "kvq/analysis/sensitivity.h"

#include <gtest/gtest.h>

#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "kvq/analysis/attention_error.h"
#include "kvq/analysis/calibration.h"
#include "kvq/analysis/output_error.h"
#include "kvq/analysis/refinement.h"
#include "kvq/base/file.h"
#include "kvq/base/half.h"
#include "kvq/model/checkpoint.h"
#include "kvq/runtime/test_models.h"

namespace kvq {
namespace {

class SensitivityTest : public testing::Test {
 protected:
  SensitivityTest() {
    options_.isa = default_isa().value();
    options_.candidates = {{Bits::k1, Bits::k2, Bits::k4}, {64}};
  }

  Engine open(const char* model = "llama3.2-tiny") { return load_engine(tiny_model(model)); }
  std::vector<TokenWindow> windows(const Engine& engine, int count, int tokens = 256) {
    std::vector<TokenWindow> result;
    result.reserve(static_cast<std::size_t>(count));
    for (int i = 0; i < count; ++i) {
      result.push_back(random_tokens(tokens, engine.config().vocabulary, static_cast<unsigned>(i)));
    }
    return result;
  }
  CostTable measure(Engine& engine, std::span<const TokenWindow> text) {
    auto table = measure_sensitivity(engine, text, options_, pool_);
    if (!table) ADD_FAILURE() << table.error().message;
    return std::move(table).value();
  }

  SensitivityOptions options_;
  std::shared_ptr<PagePool> pool_ = PagePool::create(0);
};

bool same(const CostTable& a, const CostTable& b) {
  for (std::size_t tensor = 0; tensor < a.tensors.size(); ++tensor) {
    for (std::size_t i = 0; i < a.tensors[tensor].size(); ++i) {
      const Candidate& one = a.tensors[tensor][i];
      const Candidate& other = b.tensors[tensor][i];
      if (one.spec != other.spec || one.cost != other.cost) return false;
    }
  }
  return a.tensors.size() == b.tensors.size();
}

// What one tensor in one format does to a whole pass, computed without shortcuts.
double whole_pass_divergence(Engine& engine, const TokenWindow& window, const CacheSpec& base,
                             int tensor, const TensorSpec& spec,
                             const std::shared_ptr<PagePool>& pool) {
  const auto probabilities = [&](const CacheSpec& cache) {
    Sequence sequence = make_sequence(engine, std::make_shared<const CacheSpec>(cache), pool);
    return forward(engine, sequence, window, LogitRows::kAll);
  };
  CacheSpec exact = base;
  std::ranges::fill(exact.layers, LayerSpec{});
  CacheSpec changed = base;
  tensor_spec(changed, tensor) = spec;
  const auto reference = probabilities(exact);
  const auto actual = probabilities(changed);
  const auto vocabulary = static_cast<std::size_t>(engine.config().vocabulary);
  double total = 0;
  for (std::size_t row = 0; row < window.size(); ++row) {
    const std::span<const float> p = std::span(reference).subspan(row * vocabulary, vocabulary);
    const std::span<const float> q = std::span(actual).subspan(row * vocabulary, vocabulary);
    for (int token = 0; token < static_cast<int>(vocabulary); ++token) {
      const double log_p = -negative_log_likelihood(p, token);
      total += std::exp(log_p) * (log_p + negative_log_likelihood(q, token));
    }
  }
  return total / static_cast<double>(window.size());
}

TEST_F(SensitivityTest, OutputErrorOfPartialPassesIsThatOfWholePasses) {
  Engine engine = open("qwen3-tiny");
  const auto text = windows(engine, 1);
  TensorSpec one_bit;
  one_bit.bits = Bits::k1;
  CacheSpec base = engine.cache_spec(parse_layer_spec("k3v3").value(), 4, 64);
  std::vector<FormatChange> changes;
  changes.reserve(2U * static_cast<std::size_t>(engine.config().layers));
  for (int tensor = 0; tensor < 2 * engine.config().layers; ++tensor) {
    changes.push_back({tensor, one_bit});
  }
  std::vector<double> means;
  ASSERT_TRUE(measure_output_error(engine, text, base, changes, pool_,
                                   [&](int change, int /*window*/, std::span<const float> rows) {
                                     EXPECT_EQ(change, static_cast<int>(means.size()) - 1);
                                     double sum = 0;
                                     for (const float row : rows) sum += double{row};
                                     means.push_back(sum / static_cast<double>(rows.size()));
                                   }));
  ASSERT_EQ(means.size(), changes.size() + 1);
  for (const FormatChange& change : changes) {
    const double expected =
        whole_pass_divergence(engine, text[0], base, change.tensor, change.spec, pool_);
    const double actual = means[static_cast<std::size_t>(change.tensor) + 1];
    EXPECT_NEAR(actual, expected, 1e-6 + 1e-3 * expected) << change.tensor;
    EXPECT_GT(actual, 0);
  }
}

TEST_F(SensitivityTest, AttentionErrorIsThatOfTheLayersOutput) {
  Engine engine = open();
  const auto text = windows(engine, 1);
  const ModelConfig& config = engine.config();
  HeadsTap heads(config, 256);
  Sequence sequence = make_sequence(engine, make_spec(engine), pool_);
  const Chunk chunk{&sequence, text[0]};
  PassOptions pass;
  pass.tap = &heads;
  ASSERT_TRUE(engine.forward({&chunk, 1}, LogitRows::kLast, pass));
  const CacheSpec exact = engine.cache_spec(LayerSpec{}, 4, 64);
  const auto blocks = query_blocks(exact, 256, 64);
  ASSERT_FALSE(blocks.empty());
  auto error = AttentionError::create(config, heads.layer(1), exact, blocks, options_.isa, pool_,
                                      engine.threads());
  ASSERT_TRUE(error) << error.error().message;
  EXPECT_EQ(error->mean_square(LayerSpec{}).value(), 0);
  // Each bit takes most of the error away, and the order of measurements changes nothing.
  for (const bool key : {true, false}) {
    double before = INFINITY;
    for (const Bits bits : {Bits::k1, Bits::k2, Bits::k4, Bits::k8}) {
      LayerSpec spec;
      (key ? spec.key : spec.value).bits = bits;
      const double square = error->mean_square(spec).value();
      EXPECT_LT(square, 0.6 * before);
      EXPECT_GT(square, 0);
      EXPECT_EQ(square, error->mean_square(spec).value());
      before = square;
    }
  }
}

TEST_F(SensitivityTest, CostsFallWithBytesAndAreTheSameEachTime) {
  Engine engine = open();
  const auto text = windows(engine, 2);
  for (const SensitivityMode mode : {SensitivityMode::kAttention, SensitivityMode::kOutput}) {
    options_.mode = mode;
    const CostTable table = measure(engine, text);
    ASSERT_EQ(table.tensors.size(), 2U * static_cast<std::size_t>(engine.config().layers));
    ASSERT_TRUE(validate(table));
    for (const auto& candidates : table.tensors) {
      EXPECT_TRUE(std::ranges::is_sorted(candidates, {}, &Candidate::bytes));
      EXPECT_GT(candidates.front().cost, 4 * candidates.back().cost);
      EXPECT_GT(candidates.back().cost, 0);
    }
    EXPECT_TRUE(same(table, measure(engine, text)));
  }
}

TEST_F(SensitivityTest, TheModesAgree) {
  Engine engine = open();
  const auto text = windows(engine, 2);
  const CostTable attention = measure(engine, text);
  options_.mode = SensitivityMode::kOutput;
  const CostTable output = measure(engine, text);
  for (std::size_t tensor = 0; tensor < output.tensors.size(); ++tensor) {
    ASSERT_EQ(attention.tensors[tensor].size(), output.tensors[tensor].size());
    for (std::size_t i = 0; i < output.tensors[tensor].size(); ++i) {
      const double ratio = attention.tensors[tensor][i].cost / output.tensors[tensor][i].cost;
      EXPECT_GT(ratio, 0.3);
      EXPECT_LT(ratio, 3);
    }
  }
}

TEST_F(SensitivityTest, RefinedPlanKeepsTheBudgetAndIsNoWorseThanTheFirst) {
  Engine engine = open();
  const ModelConfig& config = engine.config();
  const auto text = windows(engine, 2);
  const CostTable table = measure(engine, text);
  const std::int64_t budget = budget_bytes(6, config.layers, config.kv_heads, config.head_dim);
  const auto first = refine_plan(engine, text, table, budget, 0, options_, pool_);
  ASSERT_TRUE(first) << first.error().message;
  const auto refined = refine_plan(engine, text, table, budget, 3, options_, pool_);
  ASSERT_TRUE(refined) << refined.error().message;
  EXPECT_LE(refined->divergence, first->divergence);
  CacheSpec cache = engine.cache_spec(LayerSpec{}, 4, 64);
  cache.layers = refined->layers;
  EXPECT_LE(effective_bits(cache), 6);
  EXPECT_GT(effective_bits(cache), 5);
  EXPECT_FALSE(refine_plan(engine, text, table, 10, 1, options_, pool_));
}

// A copy of a tiny checkpoint in which the weights of one tensor are divided by 64.
class QuietModel {
 public:
  QuietModel(const char* model, const std::string& tensor)
      : directory_(std::filesystem::path(testing::TempDir()) /
                   ("kvq_quiet_" + std::to_string(getpid()))) {
    std::filesystem::remove_all(directory_);
    std::filesystem::copy(tiny_model(model), directory_);
    const auto checkpoint = Checkpoint::open(directory_).value();
    const TensorRef weights = checkpoint.tensors().find(tensor)->second;
    EXPECT_EQ(weights.type, DataType::kBFloat16);
    const auto count = static_cast<std::size_t>(weights.shape[0] * weights.shape[1]);
    std::string bytes(reinterpret_cast<const char*>(weights.data), 2 * count);
    std::string content = read_file(directory_ / "model.safetensors").value();
    const std::size_t start = content.find(bytes);
    for (std::size_t i = 0; i < count; ++i) {
      BFloat16 number;
      std::memcpy(&number, &content[start + 2 * i], 2);
      number = to_bfloat16(to_float(number) / 64);
      std::memcpy(&content[start + 2 * i], &number, 2);
    }
    EXPECT_TRUE(write_file(directory_ / "model.safetensors", content));
  }
  ~QuietModel() { std::filesystem::remove_all(directory_); }

  const std::filesystem::path& directory() const { return directory_; }

 private:
  std::filesystem::path directory_;
};

TEST_F(SensitivityTest, TheLayerThatMattersGetsTheBits) {
  for (const int quiet : {0, 1}) {
    const QuietModel model("llama-bias-tiny",
                           fmt::format("model.layers.{}.self_attn.o_proj.weight", quiet));
    Engine engine = load_engine(model.directory());
    const ModelConfig& config = engine.config();
    const auto text = windows(engine, 2);
    const CostTable table = measure(engine, text);
    const std::int64_t budget = budget_bytes(6, config.layers, config.kv_heads, config.head_dim);
    const auto plan = refine_plan(engine, text, table, budget, 1, options_, pool_);
    ASSERT_TRUE(plan) << plan.error().message;
    const auto bits = [&](int layer) {
      return PageFormat::create(plan->layers[static_cast<std::size_t>(layer)], config.head_dim)
          .value()
          .effective_bits();
    };
    EXPECT_GT(bits(1 - quiet), bits(quiet) + 1) << "quiet layer " << quiet;
  }
}

TEST_F(SensitivityTest, ShortCalibrationIsAnError) {
  Engine engine = open();
  const auto text = windows(engine, 1, 140);
  const auto table = measure_sensitivity(engine, text, options_, pool_);
  ASSERT_FALSE(table);
  EXPECT_NE(table.error().message.find("a window of 140 tokens: expected at least 148"),
            std::string::npos)
      << table.error().message;
  EXPECT_FALSE(measure_sensitivity(engine, {}, options_, pool_));
}

TEST(CalibrationTest, WindowsAreSpreadOverTheText) {
  Engine engine = load_engine(tiny_model("llama3.2-tiny"));
  const Tokenizer tokenizer = Tokenizer::open(demo_model()).value();
  const auto pool = PagePool::create(0);
  CalibrationOptions options;
  options.windows = 2;
  options.copies = 1;
  options.text.emplace();
  for (int i = 0; i < 3000; ++i) *options.text += fmt::format("{} ", i);
  const auto windows = calibration_windows(engine, tokenizer, options, pool).value();
  ASSERT_EQ(windows.size(), 3U);
  const auto all =
      cut_windows(tokenizer, *options.text, {.count = 1 << 20, .tokens = engine.config().context})
          .value();
  EXPECT_EQ(windows[0], all[0]);
  EXPECT_EQ(windows[1], all[all.size() / 2]);
  EXPECT_EQ(windows[2], copy_windows({windows.data(), 2}, 1, engine.config().context, 0)[0]);
  // Without a text: what the model writes from random openings.
  options.text.reset();
  options.copies = 0;
  const auto own = calibration_windows(engine, tokenizer, options, pool).value();
  EXPECT_EQ(own, write_windows(engine, tokenizer, {.count = 2, .tokens = engine.config().context},
                               Opening::kRandom, options.seed, pool)
                     .value());
  options.text = "short";
  options.name = "a.txt";
  const auto none = calibration_windows(engine, tokenizer, options, pool);
  ASSERT_FALSE(none);
  EXPECT_EQ(none.error().message.find("a.txt: the text has "), 0U) << none.error().message;
}

TEST(CalibrationTest, CopyWindowsRepeatTokensOfTheSource) {
  const std::vector<TokenWindow> source = {{7, 11, 12, 13}, {7, 14, 15}};
  const auto windows = copy_windows(source, 3, 101, 4);
  ASSERT_EQ(windows.size(), 3U);
  for (const TokenWindow& window : windows) {
    ASSERT_EQ(window.size(), 101U);
    EXPECT_EQ(window[0], 7);
    for (std::size_t i = 1; i < window.size(); ++i) {
      EXPECT_GE(window[i], 11);
      EXPECT_LE(window[i], 15);
    }
    for (std::size_t i = 50; i < window.size(); ++i) EXPECT_EQ(window[i], window[i - 49]);
  }
  EXPECT_NE(windows[0], windows[1]);
  EXPECT_EQ(windows, copy_windows(source, 3, 101, 4));
  EXPECT_NE(windows, copy_windows(source, 3, 101, 5));
}

}  // namespace
}  // namespace kvq
