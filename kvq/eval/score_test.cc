#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <limits>
#include <set>

#include "kvq/base/file.h"
#include "kvq/eval/evaluate.h"
#include "kvq/eval/json_lines.h"

namespace kvq {
namespace {

const std::filesystem::path kModel = std::filesystem::path(KVQ_SOURCE_DIR) / "models/demo-llama";

// One engine and tokenizer for all tests of this file.
class Scores : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    auto isa = default_isa();
    ASSERT_TRUE(isa) << isa.error().message;
    EngineOptions options;
    options.threads = 2;
    options.isa = *isa;
    auto loaded = Engine::load(kModel, options);
    ASSERT_TRUE(loaded) << loaded.error().message;
    engine = std::make_unique<Engine>(std::move(*loaded));
    auto opened = Tokenizer::open(kModel);
    ASSERT_TRUE(opened) << opened.error().message;
    tokenizer = std::make_unique<Tokenizer>(std::move(*opened));
  }

  static void TearDownTestSuite() {
    engine.reset();
    tokenizer.reset();
  }

  static std::shared_ptr<const CacheSpec> spec(std::string_view text) {
    return std::make_shared<const CacheSpec>(
        engine->cache_spec(parse_layer_spec(text).value(), /*sinks=*/4, /*window=*/64));
  }

  static TokenWindow window(int first_item, std::size_t tokens) {
    const auto lines = read_json_lines(kModel / "tasks/recall.jsonl", first_item + 1);
    const auto text = lines->back().object["prompt"].get<std::string>();
    TokenWindow result = tokenizer->encode(text, true).value();
    result.resize(tokens);
    return result;
  }

  // Log probabilities of every next token, [tokens, vocabulary], in plain double arithmetic;
  // `step` tokens at a time.
  static std::vector<double> log_probabilities(const TokenWindow& tokens,
                                               const std::shared_ptr<const CacheSpec>& cache,
                                               std::size_t step) {
    Sequence sequence = engine->new_sequence(cache, PagePool::create(0)).value();
    const auto vocabulary = static_cast<std::size_t>(engine->config().vocabulary);
    std::vector<double> result;
    for (std::size_t start = 0; start < tokens.size(); start += step) {
      const Chunk chunk{&sequence,
                        std::span(tokens).subspan(start, std::min(step, tokens.size() - start))};
      const auto logits = engine->forward({&chunk, 1}, LogitRows::kAll).value();
      for (std::size_t row = 0; row < logits.size(); row += vocabulary) {
        double sum = 0;
        for (std::size_t i = 0; i < vocabulary; ++i) {
          sum += std::exp(static_cast<double>(logits[row + i]));
        }
        for (std::size_t i = 0; i < vocabulary; ++i) {
          result.push_back(static_cast<double>(logits[row + i]) - std::log(sum));
        }
      }
    }
    return result;
  }

  // One pass over prompt and answer; every answer token compared with std::max_element.
  static bool answers_right(const TaskItem& item, const std::shared_ptr<const CacheSpec>& cache) {
    Sequence sequence = engine->new_sequence(cache, PagePool::create(0)).value();
    TokenWindow tokens = item.prompt;
    tokens.insert(tokens.end(), item.answer.begin(), item.answer.end());
    const Chunk chunk{&sequence, tokens};
    const auto logits = engine->forward({&chunk, 1}, LogitRows::kAll).value();
    const auto vocabulary = static_cast<std::size_t>(engine->config().vocabulary);
    for (std::size_t t = item.prompt.size(); t < tokens.size(); ++t) {
      const auto row = logits.subspan((t - 1) * vocabulary, vocabulary);
      if (std::max_element(row.begin(), row.end()) - row.begin() != tokens[t]) return false;
    }
    return true;
  }

  static std::unique_ptr<Engine> engine;
  static std::unique_ptr<Tokenizer> tokenizer;
};

std::unique_ptr<Engine> Scores::engine;
std::unique_ptr<Tokenizer> Scores::tokenizer;

// Adds a window to sums that TextScore is the mean of.
void add_naive(TextScore& score, const TokenWindow& tokens, const std::vector<double>& reference,
               const std::vector<double>& actual) {
  const std::size_t vocabulary = reference.size() / tokens.size();
  for (std::size_t t = 0; t < tokens.size(); ++t) {
    const auto* p = &reference[t * vocabulary];
    const auto* q = &actual[t * vocabulary];
    for (std::size_t i = 0; i < vocabulary; ++i) score.kl += std::exp(p[i]) * (p[i] - q[i]);
    const bool same =
        std::max_element(p, p + vocabulary) - p == std::max_element(q, q + vocabulary) - q;
    score.top1 += same ? 1 : 0;
    if (t + 1 < tokens.size()) score.nll -= q[tokens[t + 1]];
  }
}

TEST_F(Scores, TextAgreesWithPlainDoubleArithmetic) {
  const std::vector<TokenWindow> windows = {window(0, 230), window(1, 170)};
  const auto reference = spec("k16v16");
  const std::vector<std::shared_ptr<const CacheSpec>> formats = {
      spec("k4v2"), spec("k2:g32:channel:affine,v3:none"), spec("k16v16")};
  const auto scores = score_text(*engine, windows, reference, formats, PagePool::create(0));
  ASSERT_TRUE(scores) << scores.error().message;
  ASSERT_EQ(scores->formats.size(), 3U);
  for (std::size_t f = 0; f < formats.size(); ++f) {
    TextScore expected;
    for (const TokenWindow& tokens : windows) {
      add_naive(expected, tokens, log_probabilities(tokens, reference, tokens.size()),
                log_probabilities(tokens, formats[f], tokens.size()));
    }
    EXPECT_EQ(scores->formats[f].positions, 400);
    EXPECT_NEAR(scores->formats[f].nll, expected.nll / 398, 1e-5) << f;
    EXPECT_NEAR(scores->formats[f].kl, expected.kl / 400, 1e-6) << f;
    EXPECT_DOUBLE_EQ(scores->formats[f].top1, expected.top1 / 400) << f;
  }
  EXPECT_EQ(scores->reference_nll, scores->formats[2].nll);
  EXPECT_LT(std::abs(scores->formats[2].kl), 1e-7);
  EXPECT_EQ(scores->formats[2].top1, 1);
  EXPECT_GT(scores->formats[1].kl, scores->formats[0].kl);
}

// One pass over a window measures what decoding it token by token would.
TEST_F(Scores, TextIsWhatDecodingComputes) {
  const std::vector<TokenWindow> windows = {window(2, 240)};
  const auto reference = spec("k16v16");
  const auto format = spec("k2v2");
  const auto scores = score_text(*engine, windows, reference, {{format}}, PagePool::create(0));
  ASSERT_TRUE(scores) << scores.error().message;
  TextScore expected;
  add_naive(expected, windows[0], log_probabilities(windows[0], reference, 1),
            log_probabilities(windows[0], format, 1));
  expected.kl /= 240;
  EXPECT_GT(expected.kl, 1e-4);
  EXPECT_NEAR(scores->formats[0].kl, expected.kl, 0.1 * expected.kl);
}

TEST_F(Scores, WindowsAreConsecutive) {
  const std::string text = read_file(kModel / "tasks/arith.jsonl")->substr(0, 3000);
  const std::vector<int> begin = tokenizer->encode("", true).value();
  ASSERT_EQ(begin.size(), 1U);
  const std::vector<int> all = tokenizer->encode(text, false).value();
  const auto windows = cut_windows(*tokenizer, text, {.count = 3, .tokens = 101});
  ASSERT_TRUE(windows) << windows.error().message;
  ASSERT_EQ(windows->size(), 3U);
  for (std::size_t i = 0; i < 3; ++i) {
    const TokenWindow& tokens = (*windows)[i];
    ASSERT_EQ(tokens.size(), 101U);
    EXPECT_EQ(tokens[0], begin[0]);
    EXPECT_TRUE(
        std::equal(tokens.begin() + 1, tokens.end(), all.begin() + static_cast<long>(100 * i)));
  }
  EXPECT_EQ(cut_windows(*tokenizer, text, {.count = 1000, .tokens = 101})->size(),
            all.size() / 100);
  const auto none = cut_windows(*tokenizer, "a few words", {.count = 1, .tokens = 101});
  ASSERT_FALSE(none);
  EXPECT_EQ(none.error().message, "the text has 3 tokens, a window needs 100");
}

TEST_F(Scores, WrittenWindowsDependOnTheSeedAlone) {
  const auto written = [&](Opening opening, std::uint64_t seed) {
    return write_windows(*engine, *tokenizer, {.count = 2, .tokens = 40}, opening, seed,
                         PagePool::create(0));
  };
  for (const Opening opening : {Opening::kLikely, Opening::kRandom}) {
    const auto first = written(opening, 7);
    ASSERT_TRUE(first) << first.error().message;
    ASSERT_EQ(first->size(), 2U);
    for (const TokenWindow& tokens : *first) EXPECT_EQ(tokens.size(), 40U);
    EXPECT_NE(first->at(0), first->at(1));
    EXPECT_EQ(*first, *written(opening, 7));
    EXPECT_NE(*first, *written(opening, 8));
  }
}

TEST_F(Scores, RandomOpeningsAreTokensOfText) {
  const auto windows = write_windows(*engine, *tokenizer, {.count = 16, .tokens = 3},
                                     Opening::kRandom, 1, PagePool::create(0));
  ASSERT_TRUE(windows) << windows.error().message;
  std::set<int> openings;
  for (const TokenWindow& tokens : *windows) {
    EXPECT_FALSE(tokenizer->decode({&tokens[1], 1}).empty());
    openings.insert(tokens[1]);
  }
  EXPECT_GT(openings.size(), 12U);
}

TEST_F(Scores, TasksAgreeWithAPlainLoop) {
  Task task = read_task(kModel / "tasks/recall.jsonl", *tokenizer, 2048, 6).value();
  EXPECT_EQ(task.name, "recall");
  const Task arith = read_task(kModel / "tasks/arith.jsonl", *tokenizer, 2048, 3).value();
  task.items.insert(task.items.end(), arith.items.begin(), arith.items.end());
  for (const std::size_t wrong : {0UL, 8UL}) ++task.items[wrong].answer.back();
  for (const char* format : {"k16v16", "k2v2"}) {
    const auto cache = spec(format);
    int expected = 0;
    for (const TaskItem& item : task.items) expected += answers_right(item, cache) ? 1 : 0;
    for (const TaskMode mode : {TaskMode::kTeacherForced, TaskMode::kGenerate}) {
      const auto score = score_task(*engine, task, cache, PagePool::create(0), mode);
      ASSERT_TRUE(score) << score.error().message;
      EXPECT_EQ(score->items, 9);
      EXPECT_EQ(score->correct, expected) << format;
    }
  }
}

TEST_F(Scores, ItemsLongerThanTheContextAreErrors) {
  const auto path = kModel / "tasks/recall.jsonl";
  const auto task = read_task(path, *tokenizer, 100, 0);
  ASSERT_FALSE(task);
  EXPECT_NE(task.error().message.find("recall.jsonl:1: the item has "), std::string::npos);
  EXPECT_NE(task.error().message.find("the model's context is 100"), std::string::npos);
}

TEST_F(Scores, EvaluateReportsBytesAndKeepsTheOrder) {
  EvaluationInput input;
  input.tasks.push_back(read_task(kModel / "tasks/arith.jsonl", *tokenizer, 2048, 2).value());
  const std::vector<NamedSpec> formats = {{"four", spec("k4v4")}, {"two", spec("k2v2")}};
  const auto result = evaluate(*engine, formats, input, PagePool::create(0));
  ASSERT_TRUE(result) << result.error().message;
  EXPECT_FALSE(result->reference_nll);
  ASSERT_EQ(result->formats.size(), 2U);
  for (std::size_t i = 0; i < 2; ++i) {
    const FormatResult& format = result->formats[i];
    EXPECT_EQ(format.name, formats[i].name);
    EXPECT_EQ(format.effective_bits, effective_bits(*formats[i].spec));
    EXPECT_EQ(format.cache_bytes, cache_bytes(*formats[i].spec, 2048));
    EXPECT_EQ(format.cache_bytes_16bit, 8 * 2 * 64 * 2 * 2 * 2048);
    EXPECT_FALSE(format.text);
    ASSERT_EQ(format.tasks.size(), 1U);
    EXPECT_EQ(format.tasks[0].first, "arith");
    EXPECT_EQ(format.tasks[0].second.items, 2);
  }
}

TEST_F(Scores, PoolLimitIsAnError) {
  const std::vector<TokenWindow> windows = {window(0, 200)};
  const auto scores = score_text(*engine, windows, spec("k16v16"), {}, PagePool::create(1000));
  ASSERT_FALSE(scores);
}

}  // namespace
}  // namespace kvq
