#include "kvq/runtime/engine.h"

#include <gtest/gtest.h>

#include <unistd.h>

#include <algorithm>
#include <fstream>

#include "kvq/base/file.h"
#include "kvq/model/checkpoint.h"
#include "kvq/runtime/test_models.h"

namespace kvq {
namespace {

constexpr double kRounding = 1e-4;  // of logits, relative to the largest

TEST(EngineTest, PiecesOfAPromptGiveTheLogitsOfTheWhole) {
  Engine engine = load_engine(demo_model());
  const std::vector<int> tokens = random_tokens(700, engine.config().vocabulary, 1);
  for (const char* format : {"k16v16", "k8v8"}) {
    const auto spec = make_spec(engine, format);
    Sequence whole = make_sequence(engine, spec);
    const auto expected = forward(engine, whole, tokens, LogitRows::kLast);
    for (const std::size_t piece : {std::size_t{64}, std::size_t{333}}) {
      Sequence cut = make_sequence(engine, spec);
      std::vector<float> logits;
      std::span<const int> rest = tokens;
      while (!rest.empty()) {
        const std::size_t count = std::min(piece, rest.size());
        logits = forward(engine, cut, rest.first(count), LogitRows::kLast);
        rest = rest.subspan(count);
      }
      EXPECT_EQ(cut.length(), whole.length());
      EXPECT_LT(relative_difference(logits, expected), kRounding * 10) << format << ' ' << piece;
    }
  }
}

TEST(EngineTest, LastRowsAreTheLastOfAllRows) {
  for (const std::string& model : tiny_models()) {
    Engine engine = load_engine(tiny_model(model));
    const auto spec = make_spec(engine);
    const auto vocabulary = static_cast<std::size_t>(engine.config().vocabulary);
    const std::vector<int> tokens = random_tokens(40, engine.config().vocabulary, 2);
    Sequence one = make_sequence(engine, spec);
    Sequence other = make_sequence(engine, spec);
    const auto all = forward(engine, one, tokens, LogitRows::kAll);
    const auto last = forward(engine, other, tokens, LogitRows::kLast);
    ASSERT_EQ(all.size(), tokens.size() * vocabulary);
    ASSERT_EQ(last.size(), vocabulary);
    EXPECT_LT(relative_difference(last, std::span(all).last(vocabulary)), kRounding) << model;
  }
}

TEST(EngineTest, BatchGivesTheLogitsOfEachAlone) {
  Engine engine = load_engine(demo_model());
  const auto spec = make_spec(engine);
  const auto vocabulary = static_cast<std::size_t>(engine.config().vocabulary);
  std::vector<std::vector<int>> prompts;
  for (const int length : {5, 300, 1, 290, 64}) {
    prompts.push_back(random_tokens(length, engine.config().vocabulary, unsigned(length)));
  }
  for (const LogitRows rows : {LogitRows::kLast, LogitRows::kAll}) {
    std::vector<Sequence> batch;
    std::vector<Chunk> chunks;
    batch.reserve(prompts.size());
    for (const auto& prompt : prompts) {
      batch.push_back(make_sequence(engine, spec));
      chunks.push_back({&batch.back(), prompt});
    }
    const auto together = forward(engine, chunks, rows);
    std::size_t first = 0;
    for (const auto& prompt : prompts) {
      Sequence single = make_sequence(engine, spec);
      const auto alone = forward(engine, single, prompt, rows);
      ASSERT_EQ(alone.size(), (rows == LogitRows::kAll ? prompt.size() : 1) * vocabulary);
      ASSERT_LE(first + alone.size(), together.size());
      EXPECT_LT(relative_difference(std::span(together).subspan(first, alone.size()), alone),
                kRounding);
      first += alone.size();
    }
    EXPECT_EQ(first, together.size());
  }
}

TEST(EngineTest, ResultDoesNotDependOnThreads) {
  const std::vector<int> tokens = random_tokens(150, 96, 3);
  Engine one = load_engine(tiny_model("qwen3-tiny"), {.threads = 1});
  Engine three = load_engine(tiny_model("qwen3-tiny"), {.threads = 3});
  Sequence first = make_sequence(one, make_spec(one));
  Sequence second = make_sequence(three, make_spec(three));
  EXPECT_LT(relative_difference(forward(one, first, tokens, LogitRows::kAll),
                                forward(three, second, tokens, LogitRows::kAll)),
            1e-5);
}

TEST(EngineTest, ExactPrefillReadsItsOwnChunkUnquantized) {
  const std::vector<int> tokens = random_tokens(700, 8192, 4);
  Engine exact = load_engine(demo_model(), {.exact_prefill = true});
  Engine usual = load_engine(demo_model());
  Sequence unquantized = make_sequence(usual, make_spec(usual));
  Sequence coarse = make_sequence(usual, make_spec(usual, "k2v2"));
  Sequence prefilled = make_sequence(exact, make_spec(exact, "k2v2"));
  const auto expected = forward(usual, unquantized, tokens, LogitRows::kLast);
  EXPECT_LT(relative_difference(forward(exact, prefilled, tokens, LogitRows::kLast), expected),
            kRounding * 10);
  EXPECT_GT(relative_difference(forward(usual, coarse, tokens, LogitRows::kLast), expected), 0.01);
}

TEST(EngineTest, FullPoolLeavesEverySequenceAsItWas) {
  Engine engine = load_engine(demo_model());
  const auto spec = make_spec(engine, "k4v4");
  const std::vector<int> tokens = random_tokens(1600, engine.config().vocabulary, 5);
  const std::span<const int> prompt = std::span(tokens).first(300);
  const std::span<const int> next = std::span(tokens).last(10);

  // What undisturbed sequences answer.
  Sequence undisturbed = make_sequence(engine, spec);
  forward(engine, undisturbed, prompt, LogitRows::kLast);
  const auto expected = forward(engine, undisturbed, next, LogitRows::kLast);

  const auto pool = PagePool::create(std::int64_t{8} << 20);
  Sequence long_one = make_sequence(engine, spec, pool);
  Sequence short_one = make_sequence(engine, spec, pool);
  forward(engine, long_one, prompt, LogitRows::kLast);
  forward(engine, short_one, prompt, LogitRows::kLast);
  // Chunks over one pass and over several; the short one succeeds first.
  const auto used = pool->used_bytes();
  std::vector<Sequence> fillers;
  for (const std::size_t length : {std::size_t{400}, std::size_t{1600}}) {
    // Fill the pool until the chunk cannot fit.
    while (true) {
      Sequence filler = make_sequence(engine, spec, pool);
      const Chunk chunk{&filler, std::span(tokens).first(400)};
      if (!engine.forward({&chunk, 1}, LogitRows::kLast)) {
        EXPECT_EQ(filler.length(), 0);
        break;
      }
      fillers.push_back(std::move(filler));
    }
    Sequence fresh = make_sequence(engine, spec, pool);
    const std::vector<Chunk> chunks = {{&short_one, next},
                                       {&fresh, std::span(tokens).first(length)},
                                       {&long_one, std::span(tokens).first(length)}};
    const auto result = engine.forward(chunks, LogitRows::kLast);
    ASSERT_FALSE(result);
    EXPECT_NE(result.error().message.find("budget"), std::string::npos) << result.error().message;
    EXPECT_EQ(fresh.length(), 0);
    EXPECT_EQ(short_one.length(), 300);
    EXPECT_EQ(long_one.length(), 300);
  }
  fillers.clear();
  EXPECT_LE(pool->used_bytes(), used + (std::int64_t{1} << 20));
  for (Sequence* sequence : {&short_one, &long_one}) {
    EXPECT_LT(relative_difference(forward(engine, *sequence, next, LogitRows::kLast), expected),
              kRounding);
  }
}

TEST(EngineTest, WrongChunksAreErrorsThatChangeNothing) {
  Engine engine = load_engine(tiny_model("llama3.2-tiny"));
  const auto spec = make_spec(engine);
  Sequence sequence = make_sequence(engine, spec);
  const auto message = [&](std::vector<Chunk> chunks) {
    const auto result = engine.forward(chunks, LogitRows::kLast);
    EXPECT_FALSE(result);
    EXPECT_EQ(sequence.length(), 0);
    return result ? std::string() : result.error().message;
  };
  const std::vector<int> good = {1, 2};
  const std::vector<int> too_long = random_tokens(513, 96, 6);
  EXPECT_EQ(message({{&sequence, {}}}), "forward: expected at least one token in every chunk");
  EXPECT_EQ(message({{&sequence, std::vector<int>{1, 96}}}), "token id 96: expected 0 to 95");
  EXPECT_EQ(message({{&sequence, std::vector<int>{-1}}}), "token id -1: expected 0 to 95");
  EXPECT_EQ(message({{&sequence, good}, {&sequence, good}}),
            "forward: expected different sequences, found one twice");
  EXPECT_EQ(message({{&sequence, too_long}}),
            "513 tokens behind 0 exceed the model's context of 512");
  Engine other = load_engine(tiny_model("llama3.1-tiny"));
  Sequence foreign = make_sequence(other, make_spec(other));
  EXPECT_NE(message({{&foreign, good}}).find("the model needs 2 layers, 1 kv heads, head_dim 16"),
            std::string::npos);
}

TEST(EngineTest, ContextCanBeFilledExactly) {
  Engine engine = load_engine(tiny_model("llama3.2-tiny"));
  Sequence sequence = make_sequence(engine, make_spec(engine));
  forward(engine, sequence, random_tokens(512, 96, 7), LogitRows::kLast);
  EXPECT_EQ(sequence.length(), 512);
  const std::vector<int> one = {1};
  const Chunk chunk{&sequence, one};
  EXPECT_FALSE(engine.forward({&chunk, 1}, LogitRows::kLast));
  EXPECT_EQ(sequence.length(), 512);
}

// A copy of a tiny checkpoint in which one bf16 number of one tensor is replaced.
class DamagedModel {
 public:
  DamagedModel(const std::string& model, const std::string& tensor, std::uint16_t bits)
      : directory_(std::filesystem::path(testing::TempDir()) /
                   ("kvq_damaged_" + std::to_string(getpid()))) {
    std::filesystem::copy(tiny_model(model), directory_);
    const auto checkpoint = Checkpoint::open(directory_).value();
    const TensorRef reference = checkpoint.tensors().find(tensor)->second;
    EXPECT_EQ(reference.type, DataType::kBFloat16);
    const auto file = directory_ / "model.safetensors";
    const auto content = read_file(file).value();
    const std::string_view bytes(reinterpret_cast<const char*>(reference.data), 64);
    std::fstream stream(file, std::ios::in | std::ios::out | std::ios::binary);
    stream.seekp(static_cast<std::streamoff>(content.find(bytes)));
    stream.write(reinterpret_cast<const char*>(&bits), sizeof(bits));
  }
  ~DamagedModel() { std::filesystem::remove_all(directory_); }

  const std::filesystem::path& directory() const { return directory_; }

 private:
  std::filesystem::path directory_;
};

TEST(EngineTest, ActivationsThatAreNotFiniteAreErrorsThatNameTheLayer) {
  constexpr std::uint16_t kNan = 0x7FC0;
  struct Case {
    const char* tensor;
    const char* place;
  };
  for (const Case& damage :
       {Case{"model.layers.1.self_attn.k_proj.weight", "layer 1"},
        Case{"model.layers.1.self_attn.q_proj.weight", "layer 1, output of attention"},
        Case{"model.layers.0.self_attn.o_proj.weight", "layer 0, output of attention"},
        Case{"model.layers.0.mlp.down_proj.weight", "layer 1, input of attention"},
        Case{"model.layers.1.mlp.up_proj.weight", "layer 1, output"},
        Case{"lm_head.weight", "logits"}}) {
    const DamagedModel model("llama-bias-tiny", damage.tensor, kNan);
    Engine engine = load_engine(model.directory());
    Sequence sequence = make_sequence(engine, make_spec(engine));
    const std::vector<int> tokens = {1, 2, 3};
    const Chunk chunk{&sequence, tokens};
    const auto result = engine.forward({&chunk, 1}, LogitRows::kLast);
    ASSERT_FALSE(result) << damage.tensor;
    EXPECT_NE(result.error().message.find(damage.place), std::string::npos)
        << damage.tensor << ": " << result.error().message;
    EXPECT_EQ(sequence.length(), 0);
  }
}

TEST(EngineTest, MissingModelIsAnError) {
  const auto engine = Engine::load("/nonexistent", {});
  ASSERT_FALSE(engine);
  EXPECT_NE(engine.error().message.find("/nonexistent"), std::string::npos);
}

}  // namespace
}  // namespace kvq
