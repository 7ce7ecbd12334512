#include "kvq/analysis/activations.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "kvq/codec/metrics.h"
#include "kvq/runtime/test_models.h"

namespace kvq {
namespace {

// Keeps the keys and values of one layer.
class HeadRecorder : public PassTap {
 public:
  HeadRecorder(const ModelConfig& config, int layer) : config_(config), layer_(layer) {}
  void layer_input(int /*layer*/, int /*first_row*/, int /*rows*/,
                   const float* /*hidden*/) override {}
  void layer_heads(int layer, int /*first_row*/, int rows, const float* /*query*/, const float* key,
                   const float* value) override {
    if (layer != layer_) return;
    const std::ptrdiff_t width = std::ptrdiff_t{config_.kv_heads} * config_.head_dim;
    keys.insert(keys.end(), key, key + rows * width);
    values.insert(values.end(), value, value + rows * width);
  }
  std::vector<float> keys;    // [tokens, kv_heads, head_dim]
  std::vector<float> values;  // likewise

 private:
  const ModelConfig& config_;
  int layer_;
};

class ActivationsTest : public testing::Test {
 protected:
  ActivationsTest() : engine_(load_engine(demo_model())) {}

  Activations measure(const std::vector<TokenWindow>& windows, int sinks) {
    const std::vector<LayerSpec> formats = {parse_layer_spec("k2v3").value(),
                                            parse_layer_spec("k8v8").value()};
    auto result = measure_activations(engine_, windows, formats, sinks, default_isa().value(),
                                      PagePool::create(0));
    EXPECT_TRUE(result.has_value()) << result.error().message;
    return std::move(result).value();
  }

  // Keys (or values) of one kv head behind the sinks, [tokens, head_dim].
  static std::vector<float> head_rows(const std::vector<float>& rows, const ModelConfig& config,
                                      int head, int sinks) {
    std::vector<float> result;
    const auto width = static_cast<std::size_t>(config.kv_heads * config.head_dim);
    for (std::size_t row = static_cast<std::size_t>(sinks); row < rows.size() / width; ++row) {
      const float* first = &rows[row * width + static_cast<std::size_t>(head * config.head_dim)];
      result.insert(result.end(), first, first + config.head_dim);
    }
    return result;
  }

  Engine engine_;
};

TEST_F(ActivationsTest, AgreesWithRecordedRows) {
  const ModelConfig& config = engine_.config();
  constexpr int kSinks = 3;
  const TokenWindow window = random_tokens(600, config.vocabulary, 5);
  HeadRecorder recorder(config, 1);
  Sequence sequence = make_sequence(engine_, make_spec(engine_, "k16v16", 0));
  const Chunk chunk{&sequence, window};
  PassOptions options;
  options.tap = &recorder;
  ASSERT_TRUE(engine_.forward({&chunk, 1}, LogitRows::kLast, options).has_value());

  const Activations found = measure({window}, kSinks);
  EXPECT_EQ(found.tokens, 597);
  EXPECT_EQ(found.formats, (std::vector<std::string>{"k2v3", "k8v8"}));
  ASSERT_EQ(found.layers.size(), static_cast<std::size_t>(config.layers));
  const LayerActivations& layer = found.layers[1];
  HeadRange size{0, INFINITY, 0};
  double error = 0;
  double square = 0;
  const PageFormat format =
      PageFormat::create(parse_layer_spec("k2v3").value(), config.head_dim).value();
  for (int head = 0; head < config.kv_heads; ++head) {
    const std::vector<float> rows = head_rows(recorder.keys, config, head, kSinks);
    double squares = 0;
    for (const float x : rows) squares += double{x} * x;
    const double size_of_head = std::sqrt(squares / static_cast<double>(rows.size()));
    size.mean += size_of_head / config.kv_heads;
    size.low = std::min(size.low, size_of_head);
    size.high = std::max(size.high, size_of_head);
    // 597 tokens are nine whole pages; one of them comes in two passes.
    const auto page = static_cast<std::size_t>(kPageTokens * config.head_dim);
    for (std::size_t start = 0; start < 9 * page; start += page) {
      std::vector<Half> halves(page);
      to_half(&rows[start], halves.data(), page);
      alignas(kPageAlignment) static std::byte bytes[1 << 16];
      pack_page(format, halves.data(), halves.data(), bytes, default_isa().value());
      std::vector<float> exact(page);
      std::vector<float> stored(page);
      to_float(halves.data(), exact.data(), page);
      unpack_page(format, bytes, stored.data(), nullptr);
      error += measure_error(exact.data(), stored.data(), page).mean_squared_error;
      for (const float x : exact) square += double{x} * x / static_cast<double>(page);
    }
  }
  EXPECT_NEAR(layer.key.root_mean_square.mean, size.mean, 1e-6);
  EXPECT_NEAR(layer.key.root_mean_square.low, size.low, 1e-6);
  EXPECT_NEAR(layer.key.root_mean_square.high, size.high, 1e-6);
  EXPECT_NEAR(layer.key.errors[0].mean_squared_error, error / (9 * config.kv_heads), 1e-6);
  EXPECT_NEAR(layer.key.errors[0].relative_error, std::sqrt(error / square), 1e-6);
}

TEST_F(ActivationsTest, SpectraHoldTheirSize) {
  const ModelConfig& config = engine_.config();
  const Activations found = measure(
      {random_tokens(130, config.vocabulary, 5), random_tokens(700, config.vocabulary, 6)}, 4);
  EXPECT_EQ(found.tokens, 130 + 700 - 8);
  for (const LayerActivations& layer : found.layers) {
    for (const TensorActivations* tensor : {&layer.key, &layer.value}) {
      ASSERT_EQ(tensor->spectrum.size(), static_cast<std::size_t>(config.head_dim));
      double squares_low = 0;
      double squares_high = 0;
      for (std::size_t i = 0; i < tensor->spectrum.size(); ++i) {
        const HeadRange& value = tensor->spectrum[i];
        EXPECT_LE(value.low, value.mean);
        EXPECT_LE(value.mean, value.high);
        if (i > 0) {
          EXPECT_LE(value.mean, tensor->spectrum[i - 1].mean);
        }
        squares_low += value.low * value.low;
        squares_high += value.high * value.high;
      }
      // The squares of a head's singular values add up to those of its numbers.
      const HeadRange& size = tensor->root_mean_square;
      EXPECT_LE(std::sqrt(squares_low / config.head_dim), size.low * (1 + 1e-9));
      EXPECT_GE(std::sqrt(squares_high / config.head_dim), size.high * (1 - 1e-9));
      EXPECT_GT(tensor->errors[0].relative_error, 4 * tensor->errors[1].relative_error);
      EXPECT_LT(tensor->errors[1].relative_error, 0.02);
    }
  }
}

TEST_F(ActivationsTest, WindowsAreMeasuredApart) {
  // A window's last page is not filled with the next window's first rows.
  const TokenWindow window = random_tokens(100, engine_.config().vocabulary, 9);
  const Activations one = measure({window}, 0);
  const Activations two = measure({window, window}, 0);
  for (std::size_t layer = 0; layer < one.layers.size(); ++layer) {
    EXPECT_NEAR(two.layers[layer].value.errors[0].mean_squared_error,
                one.layers[layer].value.errors[0].mean_squared_error, 1e-12);
  }
}

TEST_F(ActivationsTest, ShortWindowsAreRefused) {
  const std::vector<TokenWindow> windows = {random_tokens(67, engine_.config().vocabulary, 9)};
  const auto result =
      measure_activations(engine_, windows, {}, 4, default_isa().value(), PagePool::create(0));
  ASSERT_FALSE(result.has_value());
  EXPECT_EQ(result.error().message, "a text window needs 68 tokens, found 67");
}

}  // namespace
}  // namespace kvq
