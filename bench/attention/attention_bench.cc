#include "bench/attention/attention_bench.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <memory>
#include <optional>

#include "bench/attention/bandwidth.h"
#include "bench/attention/bench_view.h"

namespace kvq {
namespace {

constexpr std::int64_t kDistinctPages = 16;  // of each head; the rest are repetitions
constexpr std::int64_t kAccuracyTokens = 2048;
constexpr double kDisturbed = 0.9;  // of the median probe: rounds below are dropped

std::int64_t rotation_bytes(const AttentionBenchOptions& options) {
  if (options.rotation_bytes > 0) return options.rotation_bytes;
  return std::max<std::int64_t>(130'000'000,
                                4 * static_cast<std::int64_t>(last_level_cache_bytes()));
}

double median(std::vector<double> numbers) {
  const auto middle = numbers.begin() + static_cast<std::ptrdiff_t>(numbers.size() / 2);
  std::nth_element(numbers.begin(), middle, numbers.end());
  return *middle;
}

struct Round {
  double probe;                 // GB/s, the mean of before and after
  std::vector<double> seconds;  // [format]
};

struct Candidate {
  std::unique_ptr<BenchView> bench;
  std::vector<LayerView> views;  // [copy]
  std::size_t next = 0;

  const LayerView& next_view() { return views[next++ % views.size()]; }
};

Result<Candidate> make_candidate(const AttentionBenchOptions& options, const LayerSpec& spec) {
  const BenchViewShape shape{spec,          options.kv_heads, options.head_dim,    options.tokens,
                             options.sinks, options.window,   BenchData::kDiffuse, options.seed};
  CacheSpec cost = CacheSpec::uniform(spec, 1, options.kv_heads, options.head_dim);
  const std::int64_t bytes = std::max<std::int64_t>(cache_bytes(cost, options.tokens), 1);
  const std::int64_t copies =
      std::max<std::int64_t>(2 * options.batch, (rotation_bytes(options) + bytes - 1) / bytes);
  Candidate candidate;
  KVQ_ASSIGN_OR_RETURN(candidate.bench,
                       BenchView::create(shape, kDistinctPages, static_cast<int>(copies)));
  for (int copy = 0; copy < candidate.bench->copies(); ++copy) {
    candidate.views.push_back(candidate.bench->view(copy));
  }
  return candidate;
}

Result<std::vector<Round>> run_rounds(const AttentionBenchOptions& options,
                                      std::vector<Candidate>& candidates, Attention& attention,
                                      ThreadPool& threads) {
  KVQ_ASSIGN_OR_RETURN(BandwidthProbe probe,
                       BandwidthProbe::create(static_cast<std::size_t>(rotation_bytes(options))));
  const std::vector<float> query =
      bench_query(options.query_heads, options.head_dim, BenchData::kDiffuse, options.seed);
  std::vector<float> output(query.size() * static_cast<std::size_t>(options.batch));
  std::vector<AttentionItem> items(static_cast<std::size_t>(options.batch));
  std::vector<Round> rounds;
  probe.measure(threads);
  for (int i = 0; i < options.rounds; ++i) {
    Round round{probe.measure(threads), {}};
    for (Candidate& candidate : candidates) {
      for (std::size_t sequence = 0; sequence < items.size(); ++sequence) {
        items[sequence] = {&candidate.next_view(), query.data(),
                           output.data() + sequence * query.size(), 1};
      }
      const auto start = std::chrono::steady_clock::now();
      KVQ_RETURN_IF_ERROR(attention.run(items, threads));
      const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
      round.seconds.push_back(seconds.count());
    }
    round.probe = 0.5 * (round.probe + probe.measure(threads));
    rounds.push_back(std::move(round));
  }
  return rounds;
}

// Drops disturbed rounds and fills in the figures of time.
void summarize(std::vector<Round> rounds, AttentionBenchReport& report) {
  std::vector<double> probes;
  probes.reserve(rounds.size());
  for (const Round& round : rounds) probes.push_back(round.probe);
  const double least = kDisturbed * median(probes);
  const std::size_t all = rounds.size();
  std::erase_if(rounds, [&](const Round& round) { return round.probe < least; });
  probes.clear();
  for (const Round& round : rounds) probes.push_back(round.probe);
  report.read_gb_per_s = median(probes);
  report.rounds = static_cast<int>(rounds.size());
  report.dropped_rounds = static_cast<int>(all - rounds.size());
  for (std::size_t i = 0; i < report.formats.size(); ++i) {
    AttentionBenchResult& result = report.formats[i];
    std::vector<double> seconds;
    std::vector<double> fractions;
    for (const Round& round : rounds) {
      seconds.push_back(round.seconds[i]);
      const double rate = static_cast<double>(result.packed_bytes) / round.seconds[i] / 1e9;
      fractions.push_back(rate / round.probe);
    }
    result.seconds = median(seconds);
    result.best_seconds = *std::min_element(seconds.begin(), seconds.end());
    result.gb_per_s = static_cast<double>(result.packed_bytes) / result.seconds / 1e9;
    result.fraction_of_bandwidth = median(fractions);
  }
}

}  // namespace

Result<AttentionBenchReport> bench_attention(const AttentionBenchOptions& options,
                                             ThreadPool& threads) {
  if (options.formats.empty()) return fail("bench attention: no format given");
  if (options.rounds < 1 || options.batch < 1) {
    return fail("bench attention: {} rounds of {} sequences: expected 1 or more of each",
                options.rounds, options.batch);
  }
  const AttentionShape shape{options.query_heads, options.kv_heads, options.head_dim,
                             1 / std::sqrt(static_cast<float>(options.head_dim))};
  KVQ_ASSIGN_OR_RETURN(Attention attention,
                       Attention::create(shape, {options.isa, options.precision, false}));
  AttentionBenchReport report;
  std::vector<Candidate> candidates;
  for (const LayerSpec& spec : options.formats) {
    KVQ_ASSIGN_OR_RETURN(Candidate candidate, make_candidate(options, spec));
    AttentionBenchResult result;
    result.spec = spec;
    result.kernel = attention.kernel_name(*candidate.views.front().format, true);
    result.packed_bytes = options.batch * candidate.bench->bytes();
    const std::int64_t tokens = std::min(options.tokens, kAccuracyTokens);
    for (int kind = 0; kind < kBenchDataKinds; ++kind) {
      KVQ_ASSIGN_OR_RETURN(
          result.accuracy[kind],
          measure_accuracy(options, spec, static_cast<BenchData>(kind), tokens, threads));
    }
    candidates.push_back(std::move(candidate));
    report.formats.push_back(std::move(result));
  }
  std::optional<UndisturbedThreads> undisturbed;
  if (options.real_time) undisturbed.emplace(threads);
  report.real_time = undisturbed && undisturbed->active();
  KVQ_ASSIGN_OR_RETURN(std::vector<Round> rounds,
                       run_rounds(options, candidates, attention, threads));
  summarize(std::move(rounds), report);
  return report;
}

}  // namespace kvq
