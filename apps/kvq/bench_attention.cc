// kvq bench attention: decode attention on packed caches against the bandwidth of this machine.
#include "apps/kvq/command.h"
#include "apps/kvq/options.h"
#include "apps/kvq/output.h"
#include "bench/attention/attention_bench.h"

namespace kvq {
namespace {

struct BenchAttentionCommand {
  MachineOptions machine;
  CacheOptions cache;
  JsonOption json;
  AttentionBenchOptions bench;
  std::string precision = "default";
};

// The largest error over the four kinds of data.
double worst_error(const AttentionBenchResult& result) {
  double worst = 0;
  for (const AttentionAccuracy& accuracy : result.accuracy) {
    worst = std::max(worst, accuracy.relative_error);
  }
  return worst;
}

void print(std::FILE* out, const BenchAttentionCommand& command, int threads,
           const AttentionBenchReport& report) {
  const AttentionBenchOptions& bench = command.bench;
  fmt::print(out,
             "one layer of {} sequence{}, {} kv heads, {} query heads, head dim {}, {} tokens; {} "
             "thread{}\n",
             bench.batch, bench.batch == 1 ? "" : "s", bench.kv_heads, bench.query_heads,
             bench.head_dim, with_commas(bench.tokens), threads, threads == 1 ? "" : "s");
  fmt::print(
      out, "linear read {:.1f} GB/s in the same rounds; {} rounds, {} disturbed and dropped{}\n\n",
      report.read_gb_per_s, report.rounds + report.dropped_rounds, report.dropped_rounds,
      report.real_time ? "" : "; no real-time priority");
  Table table(
      {"format", "kernel", "bits", "time", "best", "read", "rate", "of bandwidth", "error"});
  for (const AttentionBenchResult& result : report.formats) {
    table.add({to_string(result.spec), result.kernel,
               fmt::format("{:.3f}", effective_bits(CacheSpec::uniform(
                                         result.spec, 1, bench.kv_heads, bench.head_dim))),
               fmt::format("{:.1f} us", 1e6 * result.seconds),
               fmt::format("{:.1f} us", 1e6 * result.best_seconds),
               human_bytes(result.packed_bytes), fmt::format("{:.1f} GB/s", result.gb_per_s),
               fmt::format("{:.0f} %", 100 * result.fraction_of_bandwidth),
               fmt::format("{:.1e}", worst_error(result))});
  }
  table.print(out);
}

nlohmann::ordered_json to_json(const AttentionBenchReport& report, int threads,
                               const AttentionBenchOptions& bench) {
  nlohmann::ordered_json formats = nlohmann::ordered_json::array();
  for (const AttentionBenchResult& result : report.formats) {
    nlohmann::ordered_json accuracy;
    for (int kind = 0; kind < kBenchDataKinds; ++kind) {
      accuracy[std::string(name(static_cast<BenchData>(kind)))] = {
          {"relative_error", result.accuracy[kind].relative_error},
          {"worst_head", result.accuracy[kind].worst_head}};
    }
    formats.push_back({{"name", to_string(result.spec)},
                       {"kernel", result.kernel},
                       {"seconds", result.seconds},
                       {"best_seconds", result.best_seconds},
                       {"packed_bytes", result.packed_bytes},
                       {"gb_per_s", result.gb_per_s},
                       {"read_gb_per_s", report.read_gb_per_s},
                       {"fraction_of_bandwidth", result.fraction_of_bandwidth},
                       {"accuracy", std::move(accuracy)}});
  }
  return {{"tokens", bench.tokens},
          {"batch", bench.batch},
          {"kv_heads", bench.kv_heads},
          {"query_heads", bench.query_heads},
          {"head_dim", bench.head_dim},
          {"precision", bench.precision == Precision::kFast ? "fast" : "default"},
          {"threads", threads},
          {"rounds", report.rounds},
          {"dropped_rounds", report.dropped_rounds},
          {"real_time", report.real_time},
          {"formats", std::move(formats)}};
}

Result<int> run_bench_attention(BenchAttentionCommand& command) {
  KVQ_RETURN_IF_ERROR(command.json.check());
  KVQ_ASSIGN_OR_RETURN(command.bench.isa, command.machine.chosen_isa());
  command.bench.formats =
      command.cache.layer_specs({"k16v16", "k8v8", "k8v4", "k4v4", "k4v2", "k3v2", "k2v2"});
  command.bench.sinks = command.cache.sinks;
  command.bench.window = command.cache.window;
  command.bench.precision = command.precision == "fast" ? Precision::kFast : Precision::kDefault;
  ThreadPool threads(command.machine.thread_count());
  KVQ_ASSIGN_OR_RETURN(const AttentionBenchReport report, bench_attention(command.bench, threads));
  print(command.json.tables(), command, threads.size(), report);
  KVQ_RETURN_IF_ERROR(command.json.write(to_json(report, threads.size(), command.bench)));
  return 0;
}

}  // namespace

Command add_bench_attention(CLI::App& bench) {
  CLI::App* app =
      bench.add_subcommand("attention", "Decode attention against the memory's bandwidth");
  auto command = std::make_shared<BenchAttentionCommand>();
  command->cache.add(*app, /*several=*/true);
  app->add_option("--tokens", command->bench.tokens, "Context length [32768]")
      ->type_name("N")
      ->check(CLI::Range(1, 1 << 24));
  app->add_option("--batch", command->bench.batch, "Sequences of a call [1]")
      ->type_name("N")
      ->check(CLI::Range(1, 4096));
  add_heads(*app, command->bench.kv_heads, command->bench.query_heads, command->bench.head_dim);
  app->add_option("--rounds", command->bench.rounds, "Times that every format runs [30]")
      ->type_name("N")
      ->check(CLI::Range(1, 10000));
  app->add_option("--precision", command->precision,
                  "default, or fast: queries in one int8 term instead of two")
      ->type_name("P")
      ->check(CLI::IsMember({"default", "fast"}));
  command->machine.add_threads(*app);
  command->machine.add_isa(*app);
  command->json.add(*app);
  app->footer(
      "Formats and a linear read of memory take turns; the times are medians. Read =\n"
      "bytes of pages, parameters and exact rows. Error = what the kernel adds to the\n"
      "error of the format: relative, against double precision, the worst of four\n"
      "kinds of data (--json lists them).");
  return {app, [command] { return run_bench_attention(*command); }};
}

}  // namespace kvq
