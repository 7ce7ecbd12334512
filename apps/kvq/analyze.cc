// kvq analyze: what a model's keys and values are like and what formats cost it, as a page.
#include "apps/kvq/command.h"
#include "apps/kvq/options.h"
#include "apps/kvq/output.h"
#include "kvq/base/file.h"
#include "kvq/report/findings.h"
#include "kvq/report/measure.h"
#include "kvq/report/page.h"

namespace kvq {
namespace {

struct AnalyzeOptions {
  ModelOptions model;
  MachineOptions machine;
  CacheOptions cache;
  JsonOption json;
  std::string output;
  MeasureOptions measure;

  LayerSpec base() const { return cache.layer_specs({kDefaultSpec}).front(); }
};

Result<Document> measure(const AnalyzeOptions& options) {
  MeasureOptions measure = options.measure;
  measure.program = "kvq " KVQ_VERSION;
  measure.label = options.model.label();
  measure.model = options.model.model;
  measure.base = options.base();
  measure.sinks = options.cache.sinks;
  measure.window = options.cache.window;
  KVQ_ASSIGN_OR_RETURN(measure.isa, options.machine.chosen_isa());
  KVQ_ASSIGN_OR_RETURN(const std::filesystem::path directory, options.model.find());
  KVQ_ASSIGN_OR_RETURN(LoadedModel model, load_model(options.model, options.machine));
  return measure_document(model.engine, model.tokenizer, directory, measure, options.cache.pool());
}

void print_advice(std::FILE* out, const Document& document) {
  Table table({"goal", "KL below", "format", "bits", "size", "KL", "top-1"});
  for (const Advice& advice : advise(document)) {
    const std::string limit = fmt::format("{}", advice.limit);
    if (advice.format == nullptr) {
      table.add({advice.goal, limit, "none measured", "", "", "", ""});
      continue;
    }
    const MeasuredFormat& format = *advice.format;
    table.add({advice.goal, limit, format.name, fmt::format("{:.3f}", format.effective_bits),
               fmt::format("{:.0f} %", 100 * format.cache_share), fmt::format("{:.5f}", format.kl),
               fmt::format("{:.1f} %", 100 * format.top1)});
  }
  table.print(out);
  fmt::print(out, "\n");
  for (const std::string& finding : findings(document)) fmt::print(out, "{}\n", finding);
}

Result<int> run_analyze(const AnalyzeOptions& options) {
  KVQ_RETURN_IF_ERROR(options.json.check());
  if (!options.output.empty()) KVQ_RETURN_IF_ERROR(check_writable(options.output));
  KVQ_ASSIGN_OR_RETURN(Document document, measure(options));
  const nlohmann::ordered_json json = to_json(document);
  KVQ_RETURN_IF_ERROR(options.json.write(json));
  // The page shows what the file says: `kvq report` makes the same.
  KVQ_ASSIGN_OR_RETURN(document, parse_document(nlohmann::json::parse(json.dump()), "analyze"));
  print_advice(options.json.tables(), document);
  if (!options.output.empty()) {
    KVQ_RETURN_IF_ERROR(write_file(options.output, make_page({document})));
    fmt::print(options.json.tables(), "\nreport  {}\n", options.output);
  }
  return 0;
}

void check(const AnalyzeOptions& options) {
  if (options.output.empty() && options.json.path.empty()) {
    throw CLI::ValidationError("analyze", "nothing to write: give -o FILE, --json FILE or both");
  }
  const LayerSpec base = options.base();
  if (base.key.bits == Bits::k16 || base.value.bits == Bits::k16) {
    throw CLI::ValidationError("--kv", "widths of 16 bits have no rotation or groups to compare");
  }
}

}  // namespace

Command add_analyze(CLI::App& root) {
  CLI::App* app = root.add_subcommand("analyze", "Show what a model's cache is like, as a page");
  auto options = std::make_shared<AnalyzeOptions>();
  options->model.add(*app);
  app->add_option("-o,--output", options->output, "The page, one self-contained HTML file")
      ->type_name("FILE.html");
  MeasureOptions& measure = options->measure;
  app->add_option("--text", measure.text_file, "Text to measure on [sampled from the model itself]")
      ->type_name("FILE");
  app->add_option("--windows", measure.windows,
                  fmt::format("Windows of {} tokens of that text, at most [{}]", kWindowTokens,
                              measure.windows))
      ->type_name("N")
      ->check(CLI::Range(1, 1 << 20));
  app->add_option("--sensitivity", measure.sensitivity_windows,
                  fmt::format("Windows, written by the model, on which every tensor's widths are "
                              "tried and plans are made; 0 for none [{}]",
                              measure.sensitivity_windows))
      ->type_name("N")
      ->check(CLI::Range(0, 1 << 16));
  options->cache.add(*app, /*several=*/false);
  app->add_option("--seed", measure.seed, "Seed of the text that the model writes [0]")
      ->type_name("N");
  options->cache.add_memory(*app, "Memory for the caches; a run that needs more fails [no limit]");
  options->machine.add_threads(*app);
  options->machine.add_isa(*app);
  options->machine.add_device(*app);
  options->json.add(*app);
  app->parse_complete_callback([options] { check(*options); });
  app->footer(fmt::format(
      "Measures sizes and singular values of keys and values per layer, the error of\n"
      "each width, and the KL divergence from a 16-bit cache for all pairs of widths,\n"
      "with and without rotation, over group sizes, and of each tensor alone, with the\n"
      "plans that follow. Formats vary one or two options\n"
      "of --kv, {} by default. The JSON holds everything that the page shows:\n"
      "`kvq report` makes the page from it, and compares several.",
      kDefaultSpec));
  return {app, [options] { return run_analyze(*options); }};
}

}  // namespace kvq
