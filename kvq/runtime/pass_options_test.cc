// Passes over a part of the layers, and what a tap sees of a pass.
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>

#include "kvq/runtime/engine.h"
#include "kvq/runtime/test_models.h"

namespace kvq {
namespace {

// Keeps the inputs of one layer and counts the rows of all.
class Recorder : public PassTap {
 public:
  Recorder(const ModelConfig& config, int layer) : config_(config), layer_(layer) {}

  void layer_input(int layer, int first_row, int rows, const float* rows_read) override {
    if (layer != layer_) return;
    EXPECT_EQ(static_cast<std::size_t>(first_row) * static_cast<std::size_t>(config_.hidden),
              hidden.size());
    hidden.insert(hidden.end(), rows_read, rows_read + std::ptrdiff_t{rows} * config_.hidden);
  }
  void layer_heads(int layer, int first_row, int rows, const float* query, const float* key,
                   const float* value) override {
    layers.push_back(layer);
    if (layer != layer_) return;
    EXPECT_EQ(first_row, head_rows);
    head_rows += rows;
    const std::ptrdiff_t width = std::ptrdiff_t{config_.kv_heads} * config_.head_dim;
    EXPECT_TRUE(std::any_of(query, query + width, [](float x) { return x != 0; }));
    EXPECT_TRUE(std::any_of(key, key + width, [](float x) { return x != 0; }));
    values.insert(values.end(), value, value + std::ptrdiff_t{rows} * width);
  }

  std::vector<float> hidden;
  std::vector<float> values;
  std::vector<int> layers;  // as head rows were shown
  int head_rows = 0;

 private:
  const ModelConfig& config_;
  int layer_;
};

std::shared_ptr<const CacheSpec> last_layers(const CacheSpec& spec, int first_layer) {
  CacheSpec part = spec;
  part.layers.erase(part.layers.begin(), part.layers.begin() + first_layer);
  return std::make_shared<const CacheSpec>(std::move(part));
}

TEST(PassOptionsTest, LaterLayersGiveTheLogitsOfTheWholeModel) {
  Engine engine = load_engine(demo_model());
  // More than one pass, cut inside a chunk.
  const std::vector<int> first = random_tokens(300, engine.config().vocabulary, 1);
  const std::vector<int> second = random_tokens(400, engine.config().vocabulary, 2);
  const auto spec = make_spec(engine, "k3v2");
  for (const int layer : {1, 5, 7}) {
    Sequence whole_one = make_sequence(engine, spec);
    Sequence whole_two = make_sequence(engine, spec);
    const std::vector<Chunk> whole = {{&whole_one, first}, {&whole_two, second}};
    Recorder recorder(engine.config(), layer);
    const auto logits =
        engine.forward(whole, LogitRows::kAll, {.first_layer = 0, .hidden = {}, .tap = &recorder});
    ASSERT_TRUE(logits) << logits.error().message;
    const std::vector<float> expected(logits->begin(), logits->end());
    EXPECT_EQ(recorder.head_rows, 700);
    EXPECT_EQ(recorder.layers.size(), 16U);

    const auto part = last_layers(*spec, layer);
    Sequence part_one = make_sequence(engine, part);
    Sequence part_two = make_sequence(engine, part);
    const std::vector<Chunk> rest = {{&part_one, first}, {&part_two, second}};
    Recorder again(engine.config(), layer);
    const auto actual = engine.forward(
        rest, LogitRows::kAll, {.first_layer = layer, .hidden = recorder.hidden, .tap = &again});
    ASSERT_TRUE(actual) << actual.error().message;
    EXPECT_TRUE(std::ranges::equal(*actual, expected));
    EXPECT_EQ(again.hidden, recorder.hidden);
    EXPECT_EQ(again.values, recorder.values);
    EXPECT_EQ(again.layers.front(), layer);
    EXPECT_EQ(part_two.length(), 400);
  }
}

TEST(PassOptionsTest, WrongPartsAreErrors) {
  Engine engine = load_engine(demo_model());
  const auto spec = make_spec(engine);
  const std::vector<int> tokens = random_tokens(10, engine.config().vocabulary, 3);
  const std::vector<float> hidden(10 * 384);
  struct Case {
    int first_layer;
    std::size_t numbers;
    int cached_layers;
    const char* message;
  };
  for (const Case& wrong :
       {Case{8, 3840, 1, "first layer 8: expected 0 to 7"}, Case{-1, 3840, 8, "first layer -1"},
        Case{2, 3839, 6, "inputs of 3839 numbers: expected 3840"},
        Case{0, 3840, 8, "inputs of 3840 numbers: expected 0"},
        Case{2, 3840, 8, "cache of 8 layers"}, Case{0, 0, 6, "cache of 6 layers"}}) {
    Sequence sequence = make_sequence(engine, last_layers(*spec, 8 - wrong.cached_layers));
    const Chunk chunk{&sequence, tokens};
    const auto result = engine.forward({&chunk, 1}, LogitRows::kLast,
                                       {.first_layer = wrong.first_layer,
                                        .hidden = std::span(hidden).first(wrong.numbers),
                                        .tap = nullptr});
    ASSERT_FALSE(result) << wrong.message;
    EXPECT_NE(result.error().message.find(wrong.message), std::string::npos)
        << result.error().message;
    EXPECT_EQ(sequence.length(), 0);
  }
}

TEST(PassOptionsTest, AnInterruptEndsPasses) {
  std::atomic<bool> interrupted{false};
  EngineOptions options;
  options.interrupted = &interrupted;
  Engine engine = load_engine(tiny_model("llama3.2-tiny"), options);
  Sequence sequence = make_sequence(engine, make_spec(engine));
  const std::vector<int> tokens = random_tokens(8, engine.config().vocabulary, 1);
  const Chunk chunk{&sequence, tokens};
  EXPECT_TRUE(engine.forward({&chunk, 1}, LogitRows::kLast));
  interrupted = true;
  const auto logits = engine.forward({&chunk, 1}, LogitRows::kLast);
  ASSERT_FALSE(logits);
  EXPECT_EQ(logits.error().message, "interrupted");
  EXPECT_EQ(sequence.length(), 8);
}

}  // namespace
}  // namespace kvq
