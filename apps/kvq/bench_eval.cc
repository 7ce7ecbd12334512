// kvq bench eval: how fast formats are scored against the 16-bit cache.
#include <chrono>
#include <random>

#include "apps/kvq/command.h"
#include "apps/kvq/options.h"
#include "apps/kvq/output.h"
#include "apps/kvq/samples.h"
#include "kvq/base/progress.h"
#include "kvq/eval/text_score.h"

namespace kvq {
namespace {

struct BenchEvalOptions {
  ModelOptions model;
  MachineOptions machine;
  CacheOptions cache;
  JsonOption json;
  int tokens = 1024;
  int windows = 2;
  int rounds = 5;
  std::uint64_t seed = 0;
};

struct ScoringSpeed {
  std::string name;
  std::shared_ptr<const CacheSpec> spec;
  std::string kernel;
  Samples tokens_per_s;
};

std::vector<TokenWindow> random_windows(const BenchEvalOptions& options, int vocabulary) {
  std::mt19937_64 random(options.seed);
  std::uniform_int_distribution<int> token(0, vocabulary - 1);
  std::vector<TokenWindow> windows(static_cast<std::size_t>(options.windows));
  for (TokenWindow& window : windows) {
    window.resize(static_cast<std::size_t>(options.tokens));
    for (int& id : window) id = token(random);
  }
  return windows;
}

Status measure(const BenchEvalOptions& options, Engine& engine,
               const std::shared_ptr<const CacheSpec>& reference,
               std::vector<ScoringSpeed>& formats) {
  const std::vector<TokenWindow> windows = random_windows(options, engine.config().vocabulary);
  const double tokens = static_cast<double>(options.windows) * options.tokens;
  Progress progress("eval", static_cast<long>(formats.size()) * options.rounds);
  for (int round = 0; round < options.rounds; ++round) {
    for (ScoringSpeed& format : formats) {
      const auto start = std::chrono::steady_clock::now();
      KVQ_RETURN_IF_ERROR(
          score_text(engine, windows, reference, {&format.spec, 1}, options.cache.pool()));
      const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
      format.tokens_per_s.add(tokens / seconds.count());
      progress.advance();
    }
  }
  return {};
}

nlohmann::ordered_json to_json(const BenchEvalOptions& options, Engine& engine,
                               const std::vector<ScoringSpeed>& formats) {
  nlohmann::ordered_json entries = nlohmann::ordered_json::array();
  for (const ScoringSpeed& format : formats) {
    entries.push_back({{"name", format.name},
                       {"kernel", format.kernel},
                       {"effective_bits", effective_bits(*format.spec)},
                       {"tokens_per_s", format.tokens_per_s.median()},
                       {"tokens_per_s_best", format.tokens_per_s.largest()}});
  }
  return {{"model", options.model.label()},     {"weights", engine.compute_name()},
          {"threads", engine.threads().size()}, {"windows", options.windows},
          {"tokens", options.tokens},           {"rounds", options.rounds},
          {"formats", std::move(entries)}};
}

Result<int> run_bench_eval(const BenchEvalOptions& options) {
  KVQ_RETURN_IF_ERROR(options.json.check());
  KVQ_ASSIGN_OR_RETURN(LoadedModel model, load_model(options.model, options.machine));
  Engine& engine = model.engine;
  if (options.tokens > engine.config().context) {
    return fail("{} tokens exceed the model's context of {}", options.tokens,
                engine.config().context);
  }
  KVQ_ASSIGN_OR_RETURN(const auto reference, make_cache_spec(engine, LayerSpec{}, options.cache));
  std::vector<ScoringSpeed> formats;
  for (const LayerSpec& layer : options.cache.layer_specs({"k8v8", "k4v4", "k4v2", "k2v2"})) {
    ScoringSpeed format;
    format.name = to_string(layer);
    KVQ_ASSIGN_OR_RETURN(format.spec, make_cache_spec(engine, layer, options.cache));
    KVQ_ASSIGN_OR_RETURN(const PageFormat page,
                         PageFormat::create(layer, engine.config().head_dim));
    format.kernel = engine.kernel_name(page, /*decode=*/false);
    formats.push_back(std::move(format));
  }
  KVQ_RETURN_IF_ERROR(measure(options, engine, reference, formats));
  std::FILE* out = options.json.tables();
  fmt::print(out, "{}, weights in {}, {} threads; {} windows of {} tokens, {} rounds\n\n",
             options.model.label(), engine.compute_name(), engine.threads().size(), options.windows,
             options.tokens, options.rounds);
  Table table({"format", "kernel", "tokens/s", "best"});
  for (const ScoringSpeed& format : formats) {
    table.add({format.name, format.kernel, with_commas(format.tokens_per_s.median()),
               with_commas(format.tokens_per_s.largest())});
  }
  table.print(out);
  KVQ_RETURN_IF_ERROR(options.json.write(to_json(options, engine, formats)));
  return 0;
}

}  // namespace

Command add_bench_eval(CLI::App& bench) {
  CLI::App* app = bench.add_subcommand("eval", "Text scored, tokens/s, formats taking turns");
  auto options = std::make_shared<BenchEvalOptions>();
  options->model.add(*app);
  options->cache.add(*app, /*several=*/true);
  app->add_option("--tokens", options->tokens, "Tokens of each window [1024]")
      ->type_name("N")
      ->check(CLI::Range(2, 1 << 24));
  app->add_option("--windows", options->windows, "Windows scored in a round [2]")
      ->type_name("N")
      ->check(CLI::Range(1, 1 << 20));
  app->add_option("--rounds", options->rounds, "Times that every format runs [5]")
      ->type_name("N")
      ->check(CLI::Range(1, 10000));
  app->add_option("--seed", options->seed, "Seed of the random text [0]")->type_name("N");
  options->machine.add_threads(*app);
  options->machine.add_isa(*app);
  options->machine.add_device(*app);
  options->json.add(*app);
  app->footer(
      "Every window runs twice, on the format and on a 16-bit cache, and all positions'\n"
      "distributions are compared. Figures are medians of the rounds.");
  return {app, [options] { return run_bench_eval(*options); }};
}

}  // namespace kvq
