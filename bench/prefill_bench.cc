// Speed of attention over many query rows: a prompt of a small model (8 layers, 8 query heads, 2 kv
// heads, head_dim 64), and few tokens against a long history. flops counts the causal half of both
// products.
//
//   prefill_bench --benchmark_filter=prompt/avx512
#include <benchmark/benchmark.h>

#include <cmath>
#include <random>
#include <string>
#include <vector>

#include "kvq/attention/attention.h"
#include "kvq/cache/sequence.h"

namespace kvq {
namespace {

struct Problem {
  int layers;
  int query_heads;
  int kv_heads;
  int head_dim;
  int history;  // tokens before the chunk
  int tokens;   // of the chunk
};

std::vector<float> random_numbers(std::size_t count) {
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  std::vector<float> numbers(count);
  for (float& number : numbers) number = normal(random);
  return numbers;
}

// A sequence of history + tokens tokens, the last `tokens` of them appended as one chunk.
Result<Sequence> make_sequence(const Problem& problem, const char* spec) {
  const LayerSpec layer = parse_layer_spec(spec).value();
  const auto cache = std::make_shared<const CacheSpec>(
      CacheSpec::uniform(layer, problem.layers, problem.kv_heads, problem.head_dim));
  auto sequence = Sequence::create(cache, PagePool::create(0), host_isa());
  if (!sequence) return sequence;
  for (const int tokens : {problem.history, problem.tokens}) {
    if (tokens == 0) continue;
    const std::size_t count = std::size_t(tokens) * problem.kv_heads * problem.head_dim;
    const std::vector<float> key = random_numbers(count);
    const std::vector<float> value = random_numbers(count);
    KVQ_RETURN_IF_ERROR(sequence->begin_chunk(tokens));
    for (int i = 0; i < problem.layers; ++i) {
      KVQ_RETURN_IF_ERROR(sequence->append(i, key.data(), value.data()));
    }
  }
  return sequence;
}

void prefill(benchmark::State& state, const Problem& problem, const char* spec, Isa isa,
             bool exact_prefill) {
  const Result<Sequence> sequence = make_sequence(problem, spec);
  if (!sequence) return state.SkipWithError(sequence.error().message.c_str());
  const AttentionShape shape{problem.query_heads, problem.kv_heads, problem.head_dim,
                             1.0F / std::sqrt(static_cast<float>(problem.head_dim))};
  Attention attention =
      Attention::create(shape, {.isa = isa, .exact_prefill = exact_prefill}).value();
  const std::vector<float> query =
      random_numbers(std::size_t(problem.tokens) * problem.query_heads * problem.head_dim);
  std::vector<float> output(query.size());
  ThreadPool threads(static_cast<int>(state.range(0)));
  for (auto _ : state) {
    for (int i = 0; i < problem.layers; ++i) {
      const LayerView view = sequence->view(i);
      const AttentionItem item{&view, query.data(), output.data(), problem.tokens};
      const Status status = attention.run({&item, 1}, threads);
      if (!status) return state.SkipWithError(status.error().message.c_str());
    }
    benchmark::ClobberMemory();
  }
  const double pairs = problem.tokens * (problem.history + 0.5 * (problem.tokens + 1));
  state.counters["flops"] =
      benchmark::Counter(4 * pairs * problem.query_heads * problem.head_dim * problem.layers,
                         benchmark::Counter::kIsIterationInvariantRate);
}

void add(const std::string& name, const Problem& problem, const char* spec, Isa isa,
         bool exact_prefill) {
  benchmark::RegisterBenchmark(name.c_str(), prefill, problem, spec, isa, exact_prefill)
      ->ArgName("threads")
      ->Arg(1)
      ->Arg(2)
      ->Unit(benchmark::kMillisecond)
      ->UseRealTime();
}

const bool kRegistered = [] {
  const Problem prompt{8, 8, 2, 64, 0, 1500};
  const Problem chunk{1, 32, 8, 128, 8192, 256};
  const Problem few{1, 32, 8, 128, 32768, 4};
  for (const Isa isa : runnable_isas()) {
    for (const char* spec : {"k16v16", "k4v2", "k8v4", "k1.58v3"}) {
      const std::string tail = std::string(name(isa)) + "/" + spec;
      add("prompt/" + tail, prompt, spec, isa, false);
      if (isa == Isa::kPortable) continue;
      add("chunk/" + tail, chunk, spec, isa, false);
      add("few/" + tail, few, spec, isa, false);
    }
    add("prompt_exact/" + std::string(name(isa)) + "/k4v2", prompt, "k4v2", isa, true);
  }
  return true;
}();

}  // namespace
}  // namespace kvq
