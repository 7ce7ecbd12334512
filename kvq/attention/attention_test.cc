#include "kvq/attention/attention.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include "kvq/attention/reference/reference_attention.h"
#include "kvq/attention/test_view.h"
#include "kvq/cache/sequence.h"

namespace kvq {
namespace {

// One attention problem; the last `tokens` of the view are the queries.
struct Case {
  LayerSpec spec;
  int head_dim = 64;
  int kv_heads = 2;
  int heads_per_kv_head = 2;
  int sinks = 4;
  int window = 64;
  int length = 200;
  int tokens = 200;
  bool exact_prefill = false;

  AttentionShape shape() const {
    return {kv_heads * heads_per_kv_head, kv_heads, head_dim,
            1.0F / std::sqrt(static_cast<float>(head_dim))};
  }
  TestViewShape view_shape() const {
    return {spec, kv_heads, head_dim, sinks, window, length, tokens, 11};
  }
  std::size_t query_row() const { return std::size_t(shape().query_heads) * head_dim; }
  std::string text() const {
    return fmt::format("{} head_dim {} G {} sinks {} window {} length {} tokens {}{}",
                       to_string(spec), head_dim, heads_per_kv_head, sinks, window, length, tokens,
                       exact_prefill ? " exact prefill" : "");
  }
};

Attention make_attention(const Case& c, Isa isa) {
  return Attention::create(c.shape(), {.isa = isa, .exact_prefill = c.exact_prefill}).value();
}

// Tile kernels: binary32 sums of some hundred products in the scores, which the exponential carries
// over. Largest error where values are of order 1.
constexpr double kTolerance = 1e-5;
// Integer dot products with weights of 8 bits: largest error, and relative error of all.
constexpr double kDotTolerance = 2e-2;
constexpr double kDotRelativeError = 7e-3;

bool is_dot(std::string_view kernel) {
  return kernel.find("/dot k") != std::string_view::npos &&
         kernel.find("k16 v16") == std::string_view::npos;
}

void expect_close(const std::vector<float>& output, const std::vector<double>& expected,
                  const Case& c, const std::string& kernel, double tile_tolerance = kTolerance) {
  ASSERT_EQ(output.size(), expected.size());
  const double tolerance = is_dot(kernel) ? kDotTolerance : tile_tolerance;
  double error = 0;
  double norm = 0;
  for (std::size_t i = 0; i < output.size(); ++i) {
    ASSERT_NEAR(output[i], expected[i], tolerance * (1 + std::abs(expected[i])))
        << kernel << ", " << c.text() << ": token " << i / c.query_row() << " query head "
        << i % c.query_row() / c.head_dim << " channel " << i % c.head_dim;
    error += (output[i] - expected[i]) * (output[i] - expected[i]);
    norm += expected[i] * expected[i];
  }
  if (is_dot(kernel)) {
    EXPECT_LT(std::sqrt(error / norm), kDotRelativeError) << kernel << ", " << c.text();
  }
}

// Every instruction set against the reference.
void check(const Case& c) {
  TestView test(c.view_shape());
  const LayerView view = test.view();
  const std::vector<float> query = random_normal(c.tokens * c.query_row(), 5);
  std::vector<float> output(query.size());
  const AttentionItem item{&view, query.data(), output.data(), c.tokens};
  const std::vector<double> expected = reference_attention(c.shape(), item, c.exact_prefill);
  ThreadPool threads(2);
  for (const Isa isa : runnable_isas()) {
    Attention attention = make_attention(c, isa);
    const std::string kernel = attention.kernel_name(test.format(), c.tokens <= 8);
    EXPECT_TRUE(kernel.starts_with(name(isa))) << kernel;
    std::fill(output.begin(), output.end(), NAN);
    const Status status = attention.run({&item, 1}, threads);
    ASSERT_TRUE(status) << status.error().message;
    expect_close(output, expected, c, kernel);
    if (testing::Test::HasFatalFailure()) return;
  }
}

LayerSpec parse(const char* text) { return parse_layer_spec(text).value(); }

// All widths, axes, groups, parameters and rotations of keys and of values, not all combinations
// of them: the i-th value of each list with strides that have no factor in common with the others.
TEST(Attention, EveryFormatAgreesWithTheReference) {
  std::vector<Bits> widths = packed_bits();
  widths.push_back(Bits::k16);
  const int groups[] = {16, 32, 64, 128, 256};
  const int head_dims[] = {64, 80, 96, 128, 256};
  const auto tensor = [&](int n) {
    TensorSpec spec{.bits = widths[n % 9]};
    spec.axis = n / 2 % 2 == 0 ? Axis::kToken : Axis::kChannel;
    spec.group = groups[n % 5];
    spec.parameters = n / 3 % 2 == 0 ? Parameters::kSymmetric : Parameters::kAffine;
    spec.rotation = n % 2 == 0 ? Rotation::kHadamard : Rotation::kNone;
    spec.fit = Fit::kMinMax;
    return spec;
  };
  for (int i = 0; i < 90; ++i) {
    Case c{.spec = {tensor(i), tensor(7 * i + i / 9 + 3)}};
    c.head_dim = head_dims[(i + i / 9) % 5];
    c.heads_per_kv_head = 1 + i % 4;
    c.sinks = i % 3 == 0 ? 0 : 4;
    c.length = 150 + 13 * (i % 7);
    c.tokens = i % 4 == 0 ? 1 : 3 + 7 * (i % 5);
    check(c);
    if (HasFatalFailure()) return;
  }
}

TEST(Attention, EveryLengthWindowAndSinkCount) {
  int i = 0;
  for (const int length : {1, 63, 64, 65, 131, 200, 1000}) {
    for (const int window : {0, 64, 128}) {
      for (const int sinks : {0, 4}) {
        Case c{.spec = parse("k4v2")};
        c.length = length;
        c.window = window;
        c.sinks = sinks;
        c.tokens = length < 500 ? length : 1 + i % 2 * 69;
        c.kv_heads = 1;
        c.heads_per_kv_head = 1 + i % 3;
        c.exact_prefill = ++i % 3 == 0;
        check(c);
        if (HasFatalFailure()) return;
      }
    }
  }
}

TEST(Attention, ManySinksAndChunksInsideThem) {
  for (const int length : {1, 70, 130, 200, 400}) {
    check({.spec = parse("k4v4"), .sinks = 130, .length = length, .tokens = length});
    if (HasFatalFailure()) return;
    check({.spec = parse("k4v4"), .sinks = 130, .length = length, .tokens = 1});
    if (HasFatalFailure()) return;
  }
}

TEST(Attention, EveryNumberOfHeadsPerKvHead) {
  for (int group = 1; group <= 16; ++group) {
    for (const int tokens : {1, 5, 90}) {
      Case c{.spec = parse("k8:channel,v4")};
      c.heads_per_kv_head = group;
      c.kv_heads = 1;
      c.length = 260;
      c.tokens = tokens;
      check(c);
      if (HasFatalFailure()) return;
    }
  }
}

TEST(Attention, ExactPrefillReadsTheChunkExactly) {
  for (const char* spec : {"k2v2", "k4:channel:none,v3:none", "k16v16"}) {
    for (const int tokens : {1, 100, 300}) {
      Case c{.spec = parse(spec)};
      c.length = 300;
      c.tokens = tokens;
      c.exact_prefill = true;
      check(c);
      if (HasFatalFailure()) return;
    }
  }
}

// Histories that are cut into several units, with few and with many query rows.
TEST(Attention, LongHistoriesAreMerged) {
  for (const char* spec : {"k4v2", "k5:none,v6:none"}) {
    for (const int tokens : {1, 9, 40}) {
      check({.spec = parse(spec), .kv_heads = 1, .length = 4700, .tokens = tokens});
      if (HasFatalFailure()) return;
    }
  }
}

// After a truncation below packed tokens the tail begins behind P(p): here with one page more than
// a cache of this length would hold.
TEST(Attention, TailBehindTheBoundary) {
  Case c{.spec = parse("k4v4")};
  c.length = 400;
  c.tokens = 3;
  TestViewShape longer = c.view_shape();
  longer.length += kPageTokens;
  TestView test(longer);
  LayerView view = test.at(c.length, c.tokens);
  view.pages = test.view().pages;
  view.tail.first += kPageTokens;
  view.tail.count -= kPageTokens;
  view.tail.key += kPageTokens * c.head_dim;
  view.tail.value += kPageTokens * c.head_dim;
  const std::vector<float> query = random_normal(c.tokens * c.query_row(), 5);
  std::vector<float> output(query.size());
  const AttentionItem item{&view, query.data(), output.data(), c.tokens};
  const std::vector<double> expected = reference_attention(c.shape(), item, false);
  ThreadPool threads(1);
  for (const Isa isa : runnable_isas()) {
    Attention attention = make_attention(c, isa);
    ASSERT_TRUE(attention.run({&item, 1}, threads));
    expect_close(output, expected, c, attention.kernel_name(test.format(), true));
    if (HasFatalFailure()) return;
  }
}

// What the cache hands over while a sequence grows, is cut (also through packed pages) and grows
// on.
TEST(Attention, ReadsWhatTheCacheHolds) {
  Case c{.spec = parse("k4v4"), .window = 0};
  auto spec = std::make_shared<CacheSpec>(CacheSpec::uniform(c.spec, 1, c.kv_heads, c.head_dim));
  spec->sinks = c.sinks;
  spec->window = c.window;
  auto sequence = Sequence::create(spec, PagePool::create(0), host_isa());
  ASSERT_TRUE(sequence);
  const struct {
    int keep;  // tokens that stay before the chunk
    int tokens;
  } steps[] = {{0, 3}, {3, 200}, {203, 1}, {204, 70}, {150, 2}, {152, 90}, {240, 1}, {2, 30}};
  ThreadPool threads(2);
  for (const auto& step : steps) {
    ASSERT_TRUE(sequence->truncate(step.keep));
    const std::size_t count = std::size_t(step.tokens) * c.kv_heads * c.head_dim;
    const std::vector<float> rows = random_normal(2 * count, step.keep + 1);
    ASSERT_TRUE(sequence->begin_chunk(step.tokens));
    ASSERT_TRUE(sequence->append(0, rows.data(), rows.data() + count));
    const LayerView view = sequence->view(0);
    c.length = step.keep + step.tokens;
    c.tokens = step.tokens;
    ASSERT_EQ(view.length, c.length);
    const std::vector<float> query = random_normal(c.tokens * c.query_row(), 5);
    std::vector<float> output(query.size());
    const AttentionItem item{&view, query.data(), output.data(), c.tokens};
    for (const bool exact_prefill : {false, true}) {
      c.exact_prefill = exact_prefill;
      const std::vector<double> expected = reference_attention(c.shape(), item, exact_prefill);
      for (const Isa isa : runnable_isas()) {
        Attention attention = make_attention(c, isa);
        const Status status = attention.run({&item, 1}, threads);
        ASSERT_TRUE(status) << status.error().message;
        const std::string kernel = attention.kernel_name(*view.format, c.tokens <= 8);
        expect_close(output, expected, c, kernel);
        if (HasFatalFailure()) return;
      }
    }
  }
}

// Sequences of different lengths and formats in one call, each as if it were alone, on any number
// of threads, bit for bit.
TEST(Attention, BatchesAndThreadCounts) {
  std::vector<Case> cases;
  for (const int length : {5, 100, 333, 1400}) {
    for (const int tokens : {1, 4, 97}) {
      if (tokens > length) continue;
      Case c{.spec = parse(length == 333 ? "k3v3" : "k4v2")};
      c.length = length;
      c.tokens = tokens;
      cases.push_back(c);
    }
  }
  std::vector<std::unique_ptr<TestView>> tests;
  std::vector<LayerView> views;
  std::vector<std::vector<float>> queries;
  for (const Case& c : cases) {
    tests.push_back(std::make_unique<TestView>(c.view_shape()));
    views.push_back(tests.back()->view());
    queries.push_back(random_normal(c.tokens * c.query_row(), c.length));
  }
  for (const Isa isa : runnable_isas()) {
    std::vector<std::vector<float>> alone;
    for (std::size_t i = 0; i < cases.size(); ++i) {
      alone.emplace_back(queries[i].size());
      ThreadPool one(1);
      const AttentionItem item{&views[i], queries[i].data(), alone[i].data(), cases[i].tokens};
      ASSERT_TRUE(make_attention(cases[i], isa).run({&item, 1}, one));
    }
    Attention attention = make_attention(cases[0], isa);
    for (const int thread_count : {1, 2, 3, 8}) {
      ThreadPool threads(thread_count);
      std::vector<std::vector<float>> outputs;
      std::vector<AttentionItem> items;
      for (std::size_t i = 0; i < cases.size(); ++i) outputs.emplace_back(queries[i].size(), NAN);
      for (std::size_t i = 0; i < cases.size(); ++i) {
        items.push_back({&views[i], queries[i].data(), outputs[i].data(), cases[i].tokens});
      }
      ASSERT_TRUE(attention.run(items, threads));
      for (std::size_t i = 0; i < cases.size(); ++i) {
        ASSERT_EQ(outputs[i], alone[i])
            << name(isa) << ", " << thread_count << " threads, " << cases[i].text();
      }
    }
  }
}

// A chunk of 200 tokens and the same tokens one by one give the same up to rounding.
TEST(Attention, ChunksOfAnySizeAgree) {
  for (const char* spec : {"k4v2", "k3:none,v3:none", "k16v16"}) {
    Case c{.spec = parse(spec)};
    TestView test(c.view_shape());
    const std::vector<float> query = random_normal(c.tokens * c.query_row(), 5);
    ThreadPool threads(2);
    for (const Isa isa : runnable_isas()) {
      Attention attention = make_attention(c, isa);
      std::vector<float> whole(query.size());
      const LayerView view = test.view();
      const AttentionItem item{&view, query.data(), whole.data(), c.tokens};
      ASSERT_TRUE(attention.run({&item, 1}, threads));
      const std::vector<double> expected(whole.begin(), whole.end());
      for (const int chunk : {1, 7, 100}) {
        std::vector<float> pieces(query.size());
        for (int first = 0; first < c.tokens; first += chunk) {
          const int count = std::min(chunk, c.tokens - first);
          const LayerView part = test.at(first + count, count);
          const std::size_t offset = first * c.query_row();
          const AttentionItem piece{&part, query.data() + offset, pieces.data() + offset, count};
          ASSERT_TRUE(attention.run({&piece, 1}, threads));
        }
        const std::string kernel = attention.kernel_name(test.format(), chunk <= 8);
        expect_close(pieces, expected, c, kernel + fmt::format(" in chunks of {}", chunk));
        if (HasFatalFailure()) return;
      }
    }
  }
}

// Up to 8 tokens at once, as in a speculative step: bit for bit what single steps give.
TEST(Attention, FewTokensEqualSingleSteps) {
  Case c{.spec = parse("k4v2"), .tokens = 8};
  c.length = 202;  // P changes inside the chunk, at position 196
  TestView test(c.view_shape());
  const std::vector<float> query = random_normal(c.tokens * c.query_row(), 5);
  ThreadPool threads(2);
  for (const Isa isa : runnable_isas()) {
    Attention attention = make_attention(c, isa);
    if (!is_dot(attention.kernel_name(test.format(), true))) continue;
    std::vector<float> together(query.size());
    const LayerView view = test.view();
    const AttentionItem item{&view, query.data(), together.data(), c.tokens};
    ASSERT_TRUE(attention.run({&item, 1}, threads));
    std::vector<float> singly(query.size());
    for (int token = 0; token < c.tokens; ++token) {
      const LayerView step = test.at(c.length - c.tokens + token + 1, 1);
      const std::size_t offset = token * c.query_row();
      const AttentionItem single{&step, query.data() + offset, singly.data() + offset, 1};
      ASSERT_TRUE(attention.run({&single, 1}, threads));
    }
    EXPECT_EQ(together, singly) << name(isa);
  }
}

// Scores far apart: all weight on one token, nothing overflows.
TEST(Attention, LargeScores) {
  Case c{.spec = parse("k8v8")};
  TestView test(c.view_shape());
  const LayerView view = test.view();
  std::vector<float> query = random_normal(c.tokens * c.query_row(), 5);
  for (float& x : query) x *= 300;
  std::vector<float> output(query.size());
  const AttentionItem item{&view, query.data(), output.data(), c.tokens};
  const std::vector<double> expected = reference_attention(c.shape(), item, false);
  ThreadPool threads(1);
  for (const Isa isa : runnable_isas()) {
    Attention attention = make_attention(c, isa);
    ASSERT_TRUE(attention.run({&item, 1}, threads));
    // Scores of some thousand carry rounding errors of about 1e-3.
    expect_close(output, expected, c, attention.kernel_name(test.format(), false), 1e-2);
    if (HasFatalFailure()) return;
  }
}

TEST(Attention, RefusesWhatDoesNotFit) {
  const auto message = [](const AttentionShape& shape) {
    const auto attention = Attention::create(shape, {});
    return attention ? std::string() : attention.error().message;
  };
  EXPECT_EQ(message({.query_heads = 4, .kv_heads = 2, .head_dim = 64, .scale = 1}), "");
  EXPECT_NE(message({.query_heads = 5, .kv_heads = 2, .head_dim = 64, .scale = 1}), "");
  EXPECT_NE(message({.query_heads = 34, .kv_heads = 2, .head_dim = 64, .scale = 1}), "");
  EXPECT_NE(message({.query_heads = 4, .kv_heads = 2, .head_dim = 72, .scale = 1}), "");
  EXPECT_NE(message({.query_heads = 4, .kv_heads = 2, .head_dim = 272, .scale = 1}), "");
  EXPECT_NE(message({.query_heads = 4, .kv_heads = 2, .head_dim = 64, .scale = 0}), "");

  Case c{.spec = parse("k4v2")};
  TestView test(c.view_shape());
  const std::vector<float> query(c.tokens * c.query_row());
  std::vector<float> output(query.size());
  ThreadPool threads(1);
  const auto run = [&](const LayerView& view, int tokens) {
    const AttentionItem item{&view, query.data(), output.data(), tokens};
    const Status status = make_attention(c, Isa::kPortable).run({&item, 1}, threads);
    return status ? std::string() : status.error().message;
  };
  EXPECT_EQ(run(test.view(), 200), "");
  EXPECT_NE(run(test.view(), 0), "");
  EXPECT_NE(run(test.view(), 201), "");
  LayerView view = test.view();
  view.kv_heads = 1;
  EXPECT_NE(run(view, 1), "");
  view = test.view();
  view.pages = view.pages.first(0);
  EXPECT_NE(run(view, 200), "");
  EXPECT_NE(run(test.at(200, 1), 200), "") << "the tail lacks the first queries' rows";
}

}  // namespace
}  // namespace kvq
