// kvq bench append: how fast rows are quantized and packed, and what that is of a decode step.
#include <chrono>
#include <cmath>
#include <random>

#include "apps/kvq/command.h"
#include "apps/kvq/options.h"
#include "apps/kvq/output.h"
#include "apps/kvq/samples.h"
#include "bench/attention/bandwidth.h"
#include "kvq/attention/attention.h"
#include "kvq/base/progress.h"
#include "kvq/cache/sequence.h"

namespace kvq {
namespace {

struct BenchAppendOptions {
  MachineOptions machine;
  CacheOptions cache;
  JsonOption json;
  int tokens = 4096;
  int kv_heads = 8;
  int query_heads = 32;
  int head_dim = 128;
  int rounds = 7;
};

// What the bandwidth probe reads: more than any cache of one core holds.
constexpr std::size_t kProbeBytes = std::size_t{256} << 20;

struct AppendSpeed {
  std::string name;
  std::shared_ptr<const CacheSpec> spec;  // one layer
  std::string kernel;                     // of the attention
  std::int64_t packed_bytes = 0;
  Samples bulk;       // seconds to append all tokens as one chunk
  Samples step;       // seconds a token, appended one by one
  Samples attention;  // seconds a token

  double share() const { return step.median() / (step.median() + attention.median()); }
};

std::vector<float> random_rows(std::int64_t count, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> rows(static_cast<std::size_t>(count));
  for (float& value : rows) value = normal(random);
  return rows;
}

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// One layer's rows for every token, and one query.
class AppendBench {
 public:
  AppendBench(const BenchAppendOptions& options, Isa isa)
      : options_(options),
        isa_(isa),
        threads_(1),
        row_(std::int64_t{options.kv_heads} * options.head_dim),
        key_(random_rows(row_ * (options.tokens + kPageTokens), 1)),
        value_(random_rows(row_ * (options.tokens + kPageTokens), 2)),
        query_(random_rows(std::int64_t{options.query_heads} * options.head_dim, 3)),
        output_(query_.size()) {}

  AttentionShape shape() const {
    return {.query_heads = options_.query_heads,
            .kv_heads = options_.kv_heads,
            .head_dim = options_.head_dim,
            .scale = 1.0F / std::sqrt(static_cast<float>(options_.head_dim))};
  }

  // A whole chunk, then one page's worth of single tokens with their attention.
  Status run(Attention& attention, AppendSpeed& format) {
    KVQ_ASSIGN_OR_RETURN(Sequence sequence,
                         Sequence::create(format.spec, PagePool::create(0), isa_));
    const auto start = std::chrono::steady_clock::now();
    KVQ_RETURN_IF_ERROR(append(sequence, 0, options_.tokens));
    format.bulk.add(seconds_since(start));
    format.packed_bytes = sequence.bytes().pages;
    double step_seconds = 0;
    double attention_seconds = 0;
    for (int i = 0; i < kPageTokens; ++i) {
      const auto step_start = std::chrono::steady_clock::now();
      KVQ_RETURN_IF_ERROR(append(sequence, options_.tokens + i, 1));
      step_seconds += seconds_since(step_start);
      const LayerView view = sequence.view(0);
      const AttentionItem item{&view, query_.data(), output_.data(), 1};
      const auto attention_start = std::chrono::steady_clock::now();
      KVQ_RETURN_IF_ERROR(attention.run({&item, 1}, threads_));
      attention_seconds += seconds_since(attention_start);
    }
    format.step.add(step_seconds / kPageTokens);
    format.attention.add(attention_seconds / kPageTokens);
    return {};
  }

  // The one undisturbed thread that runs everything.
  ThreadPool& threads() { return threads_; }

  // fp16 bytes of the bulk append's rows.
  double bulk_bytes() const { return 4.0 * static_cast<double>(row_) * options_.tokens; }

 private:
  Status append(Sequence& sequence, int first, int tokens) {
    const auto offset = static_cast<std::size_t>(row_ * first);
    KVQ_RETURN_IF_ERROR(sequence.begin_chunk(tokens));
    return sequence.append(0, &key_[offset], &value_[offset]);
  }

  const BenchAppendOptions& options_;
  Isa isa_;
  ThreadPool threads_;
  std::int64_t row_;          // numbers of one token
  std::vector<float> key_;    // [tokens + 64, kv_heads, head_dim]
  std::vector<float> value_;  // likewise
  std::vector<float> query_;  // [query_heads, head_dim]
  std::vector<float> output_;
  UndisturbedThreads undisturbed_{threads_};
};

Result<std::vector<AppendSpeed>> make_formats(const BenchAppendOptions& options,
                                              const Attention& attention) {
  std::vector<AppendSpeed> formats;
  for (const LayerSpec& layer :
       options.cache.layer_specs({"k16v16", "k8v8", "k4v4", "k4v2", "k2v2"})) {
    CacheSpec spec = CacheSpec::uniform(layer, 1, options.kv_heads, options.head_dim);
    spec.sinks = options.cache.sinks;
    spec.window = options.cache.window;
    KVQ_RETURN_IF_ERROR(validate(spec));
    KVQ_ASSIGN_OR_RETURN(const PageFormat page, PageFormat::create(layer, options.head_dim));
    AppendSpeed format;
    format.name = to_string(layer);
    format.kernel = attention.kernel_name(page, /*decode=*/true);
    format.spec = std::make_shared<const CacheSpec>(std::move(spec));
    formats.push_back(std::move(format));
  }
  return formats;
}

struct AppendReport {
  Isa isa = Isa::kPortable;
  double bulk_bytes = 0;     // fp16 bytes of the prompt's rows
  double read_gb_per_s = 0;  // of this core, median
  std::vector<AppendSpeed> formats;

  double gb_per_s(const AppendSpeed& format) const {
    return bulk_bytes / format.bulk.median() / 1e9;
  }
};

void print(std::FILE* out, const BenchAppendOptions& options, const AppendReport& report) {
  fmt::print(out,
             "one layer, {} kv heads, {} query heads, head dim {}, {} tokens\n"
             "one core, {}, which reads {:.1f} GB/s; medians of {} rounds\n\n",
             options.kv_heads, options.query_heads, options.head_dim,
             with_commas(std::int64_t{options.tokens}), name(report.isa), report.read_gb_per_s,
             options.rounds);
  Table table({"format", "prompt append", "packed", "append a token", "attention a token",
               "append's share"});
  for (const AppendSpeed& format : report.formats) {
    table.add({format.name, fmt::format("{:.2f} GB/s", report.gb_per_s(format)),
               human_bytes(format.packed_bytes),
               fmt::format("{:.2f} us", 1e6 * format.step.median()),
               fmt::format("{:.1f} us", 1e6 * format.attention.median()),
               fmt::format("{:.1f} %", 100 * format.share())});
  }
  table.print(out);
}

nlohmann::ordered_json to_json(const BenchAppendOptions& options, const AppendReport& report) {
  nlohmann::ordered_json entries = nlohmann::ordered_json::array();
  for (const AppendSpeed& format : report.formats) {
    const double rate = report.gb_per_s(format);
    entries.push_back({{"name", format.name},
                       {"kernel", std::string(name(report.isa))},
                       {"seconds", format.bulk.median()},
                       {"packed_bytes", format.packed_bytes},
                       {"gb_per_s", rate},
                       {"read_gb_per_s", report.read_gb_per_s},
                       {"fraction_of_bandwidth", rate / report.read_gb_per_s},
                       {"append_seconds_per_token", format.step.median()},
                       {"attention_kernel", format.kernel},
                       {"attention_seconds_per_token", format.attention.median()},
                       {"share_of_decode_step", format.share()}});
  }
  return {{"tokens", options.tokens},           {"kv_heads", options.kv_heads},
          {"query_heads", options.query_heads}, {"head_dim", options.head_dim},
          {"rounds", options.rounds},           {"formats", std::move(entries)}};
}

Result<AppendReport> measure(const BenchAppendOptions& options) {
  AppendReport report;
  KVQ_ASSIGN_OR_RETURN(report.isa, options.machine.chosen_isa());
  AppendBench bench(options, report.isa);
  report.bulk_bytes = bench.bulk_bytes();
  AttentionOptions attention_options;
  attention_options.isa = report.isa;
  KVQ_ASSIGN_OR_RETURN(Attention attention, Attention::create(bench.shape(), attention_options));
  KVQ_ASSIGN_OR_RETURN(report.formats, make_formats(options, attention));
  KVQ_ASSIGN_OR_RETURN(BandwidthProbe probe, BandwidthProbe::create(kProbeBytes));
  Samples bandwidth;
  Progress progress("append", static_cast<long>(report.formats.size()) * options.rounds);
  for (int round = 0; round < options.rounds; ++round) {
    bandwidth.add(probe.measure(bench.threads()));
    for (AppendSpeed& format : report.formats) {
      KVQ_RETURN_IF_ERROR(bench.run(attention, format));
      progress.advance();
    }
  }
  report.read_gb_per_s = bandwidth.median();
  return report;
}

Result<int> run_bench_append(const BenchAppendOptions& options) {
  KVQ_RETURN_IF_ERROR(options.json.check());
  KVQ_ASSIGN_OR_RETURN(const AppendReport report, measure(options));
  print(options.json.tables(), options, report);
  KVQ_RETURN_IF_ERROR(options.json.write(to_json(options, report)));
  return 0;
}

}  // namespace

Command add_bench_append(CLI::App& bench) {
  CLI::App* app = bench.add_subcommand("append", "Quantize-and-pack speed of one core");
  auto options = std::make_shared<BenchAppendOptions>();
  options->cache.add(*app, /*several=*/true);
  app->add_option("--tokens", options->tokens, "Context length [4096]")
      ->type_name("N")
      ->check(CLI::Range(kPageTokens, 1 << 24));
  add_heads(*app, options->kv_heads, options->query_heads, options->head_dim);
  app->add_option("--rounds", options->rounds, "Times that every format runs [7]")
      ->type_name("N")
      ->check(CLI::Range(1, 10000));
  options->machine.add_isa(*app);
  options->json.add(*app);
  app->footer(
      "GB/s counts the 16-bit bytes of the rows that go in. A decode step here is one\n"
      "layer's append and attention at that context length, without the model's matrix\n"
      "products.");
  return {app, [options] { return run_bench_append(*options); }};
}

}  // namespace kvq
