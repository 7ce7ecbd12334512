#include "kvq/runtime/test_models.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>

namespace kvq {

std::filesystem::path demo_model() {
  return std::filesystem::path(KVQ_SOURCE_DIR) / "models/demo-llama";
}

std::filesystem::path tiny_model(const std::string& name) {
  return std::filesystem::path(KVQ_SOURCE_DIR) / "tests/fixtures/checkpoints" / name;
}

const std::vector<std::string>& tiny_models() {
  static const std::vector<std::string> kNames = {"llama3.1-tiny", "llama3.2-tiny", "qwen3-tiny",
                                                  "llama-bias-tiny"};
  return kNames;
}

Engine load_engine(const std::filesystem::path& directory, EngineOptions options) {
  if (options.threads == 0) options.threads = 2;
  if (options.isa == Isa::kPortable) options.isa = default_isa().value();
  auto engine = Engine::load(directory, options);
  if (!engine) ADD_FAILURE() << engine.error().message;
  return std::move(engine).value();
}

std::shared_ptr<const CacheSpec> make_spec(const Engine& engine, const std::string& text, int sinks,
                                           int window) {
  return std::make_shared<CacheSpec>(
      engine.cache_spec(parse_layer_spec(text).value(), sinks, window));
}

Sequence make_sequence(const Engine& engine, std::shared_ptr<const CacheSpec> spec,
                       std::shared_ptr<PagePool> pool) {
  return engine.new_sequence(std::move(spec), std::move(pool)).value();
}

std::vector<float> forward(Engine& engine, std::span<const Chunk> chunks, LogitRows rows) {
  const auto logits = engine.forward(chunks, rows);
  if (!logits) {
    ADD_FAILURE() << logits.error().message;
    return {};
  }
  return {logits->begin(), logits->end()};
}

std::vector<float> forward(Engine& engine, Sequence& sequence, std::span<const int> tokens,
                           LogitRows rows) {
  const Chunk chunk{&sequence, tokens};
  return forward(engine, {&chunk, 1}, rows);
}

double negative_log_likelihood(std::span<const float> logits, int token) {
  const double max = *std::ranges::max_element(logits);
  double sum = 0;
  for (const float logit : logits) sum += std::exp(logit - max);
  return max + std::log(sum) - logits[static_cast<std::size_t>(token)];
}

double relative_difference(std::span<const float> a, std::span<const float> b) {
  EXPECT_EQ(a.size(), b.size());
  double difference = 0;
  double magnitude = 0;
  for (std::size_t i = 0; i < std::min(a.size(), b.size()); ++i) {
    difference = std::max(difference, std::abs(double{a[i]} - b[i]));
    magnitude = std::max(magnitude, std::abs(double{b[i]}));
  }
  return difference / magnitude;
}

std::vector<int> random_tokens(int count, int vocabulary, unsigned seed) {
  std::mt19937 random(seed);
  std::vector<int> tokens;
  for (int i = 0; i < count; ++i) {
    tokens.push_back(static_cast<int>(random() % static_cast<unsigned>(vocabulary)));
  }
  return tokens;
}

}  // namespace kvq
