// kvq analyze: what a model's keys and values are like and what formats cost it, as a page.
#include <array>
#include <cmath>

#include "apps/kvq/command.h"
#include "apps/kvq/options.h"
#include "apps/kvq/output.h"
#include "kvq/analysis/activations.h"
#include "kvq/analysis/format_grid.h"
#include "kvq/analysis/norms.h"
#include "kvq/analysis/plan_curve.h"
#include "kvq/analysis/sensitivity.h"
#include "kvq/base/file.h"
#include "kvq/eval/evaluate.h"
#include "kvq/report/document.h"
#include "kvq/report/findings.h"
#include "kvq/report/page.h"

namespace kvq {
namespace {

constexpr int kDefaultWindows = 4;
constexpr int kDefaultSensitivityWindows = 2;
constexpr std::array kWidths = {Bits::k2, Bits::k3, Bits::k4, Bits::k5, Bits::k6, Bits::k8};
constexpr std::array kSensitivityWidths = {Bits::k1, Bits::k2, Bits::k3, Bits::k4,
                                           Bits::k5, Bits::k6, Bits::k8};
// Mean code bits of the plans that are compared.
constexpr std::array kPlanBits = {1.5, 2.0, 2.5, 3.0, 4.0};
constexpr std::array kWidthNumbers = {2.0, 3.0, 4.0, 5.0, 6.0, 8.0};

struct AnalyzeOptions {
  ModelOptions model;
  MachineOptions machine;
  CacheOptions cache;
  JsonOption json;
  std::string output;
  std::string text_file;
  int windows = kDefaultWindows;
  int sensitivity_windows = kDefaultSensitivityWindows;
  std::uint64_t seed = 0;

  LayerSpec base() const { return cache.layer_specs({kDefaultSpec}).front(); }
};

// A command line that measures the same.
std::string command_line(const AnalyzeOptions& options) {
  const auto quoted = [](const std::string& text) {
    return text.find_first_of(" '\"$&();|<>*?\\") == std::string::npos ? text : "'" + text + "'";
  };
  std::string command = "kvq analyze";
  if (!options.model.model.empty()) command += " " + quoted(options.model.model);
  if (!options.text_file.empty()) command += " --text " + quoted(options.text_file);
  command += fmt::format(" --windows {}", options.windows);
  command += fmt::format(" --sensitivity {} --seed {}", options.sensitivity_windows, options.seed);
  return command + fmt::format(" --kv {} --sinks {} --window {}", to_string(options.base()),
                               options.cache.sinks, options.cache.window);
}

MeasuredGrid named(const FormatGrid& grid, const LayerSpec& base) {
  MeasuredGrid result{to_string(base), grid.rows, grid.columns, {}};
  for (const auto& row : grid.cells) {
    auto& names = result.cells.emplace_back();
    for (const LayerSpec& spec : row) names.push_back(to_string(spec));
  }
  return result;
}

void describe(const AnalyzeOptions& options, const ModelConfig& config,
              const std::vector<TokenWindow>& windows, Document& document) {
  document.program = "kvq " KVQ_VERSION;
  document.command = command_line(options);
  document.model = {.name = options.model.label(),
                    .type = config.model_type,
                    .layers = config.layers,
                    .query_heads = config.query_heads,
                    .kv_heads = config.kv_heads,
                    .head_dim = config.head_dim,
                    .context = config.context};
  document.text = {.file = options.text_file,
                   .seed = options.seed,
                   .windows = static_cast<int>(windows.size()),
                   .tokens_per_window = static_cast<int>(windows.front().size())};
  document.sinks = options.cache.sinks;
  document.window = options.cache.window;
}

struct WeightNormTables {
  NormTable frobenius;
  NormTable spectral;
};

// Reads the projections from the files; the engine keeps them in another form.
Result<WeightNormTables> measure_weights(Engine& engine, const AnalyzeOptions& options) {
  KVQ_ASSIGN_OR_RETURN(const std::filesystem::path directory, options.model.find());
  KVQ_ASSIGN_OR_RETURN(const Checkpoint checkpoint, Checkpoint::open(directory));
  const ModelConfig& config = engine.config();
  WeightNormTables tables;
  KVQ_ASSIGN_OR_RETURN(tables.frobenius,
                       measure_norms(config, checkpoint, Norm::kFrobenius, engine.threads()));
  KVQ_ASSIGN_OR_RETURN(tables.spectral,
                       measure_norms(config, checkpoint, Norm::kSpectral, engine.threads()));
  return tables;
}

Status measure_layers(Engine& engine, const AnalyzeOptions& options,
                      const std::vector<TokenWindow>& windows, Document& document) {
  std::vector<LayerSpec> formats;
  for (const Bits bits : kWidths) {
    LayerSpec spec = options.base();
    spec.key.bits = bits;
    spec.value.bits = bits;
    formats.push_back(spec);
  }
  document.error_bits.assign(kWidthNumbers.begin(), kWidthNumbers.end());
  KVQ_ASSIGN_OR_RETURN(const Isa isa, options.machine.chosen_isa());
  KVQ_ASSIGN_OR_RETURN(document.activations,
                       measure_activations(engine, windows, formats, options.cache.sinks, isa,
                                           options.cache.pool()));
  return {};
}

MeasuredFormat measured(const FormatResult& format) {
  return {.name = format.name,
          .effective_bits = format.effective_bits,
          .cache_share = static_cast<double>(format.cache_bytes) /
                         static_cast<double>(format.cache_bytes_16bit),
          .nll = format.text->nll,
          .kl = format.text->kl,
          .top1 = format.text->top1};
}

// What every tensor is worth, and plans that follow from it and from norms. Measured on text of the
// model's own with another seed, so that plans are judged on text that they have not seen.
Result<std::vector<SizedPlan>> plan_layers(LoadedModel& model, const AnalyzeOptions& options,
                                           const NormTable& norms, Document& document) {
  const std::uint64_t seed = options.seed + 1;
  const auto pool = options.cache.pool();
  KVQ_ASSIGN_OR_RETURN(const std::vector<TokenWindow> windows,
                       read_windows(model, "", options.sensitivity_windows, seed, pool));
  const LayerSpec base = options.base();
  const std::vector<Bits> widths(kSensitivityWidths.begin(), kSensitivityWidths.end());
  KVQ_ASSIGN_OR_RETURN(const CostTable alone,
                       measure_width_costs(model.engine, windows, base, widths, options.cache.sinks,
                                           options.cache.window, pool));
  TensorSensitivity& sensitivity = document.sensitivity.emplace();
  sensitivity.base = to_string(base);
  sensitivity.windows = static_cast<int>(windows.size());
  sensitivity.seed = seed;
  for (const Bits bits : widths) sensitivity.widths.emplace_back(name(bits));
  for (std::size_t tensor = 0; tensor < alone.tensors.size(); ++tensor) {
    auto& rows = tensor % 2 == 0 ? sensitivity.key : sensitivity.value;
    auto& row = rows.emplace_back();
    for (const Candidate& candidate : alone.tensors[tensor]) row.push_back(candidate.cost);
  }
  SensitivityOptions choice;
  choice.sinks = options.cache.sinks;
  choice.window = options.cache.window;
  KVQ_ASSIGN_OR_RETURN(choice.isa, options.machine.chosen_isa());
  KVQ_ASSIGN_OR_RETURN(const CostTable costs,
                       measure_sensitivity(model.engine, windows, choice, pool));
  KVQ_ASSIGN_OR_RETURN(const CostTable norm_costs, width_costs(norms, base, widths));
  const ModelConfig& config = model.engine.config();
  return make_plans(norm_costs, costs, base, config.kv_heads, config.head_dim, kPlanBits);
}

// Everything that is compared on the text: the formats of the grids, then the plans.
Status measure_formats(Engine& engine, const AnalyzeOptions& options,
                       const std::vector<TokenWindow>& windows, const std::vector<SizedPlan>& plans,
                       Document& document) {
  const LayerSpec base = options.base();
  const std::array grids = {width_grid(base, kWidths), rotation_grid(base), group_grid(base)};
  document.widths = named(grids[0], base);
  document.rotations = named(grids[1], base);
  document.groups = named(grids[2], base);
  std::vector<NamedSpec> formats;
  for (const LayerSpec& layer : distinct_formats(base, grids)) {
    KVQ_ASSIGN_OR_RETURN(auto spec, make_cache_spec(engine, layer, options.cache));
    formats.push_back({to_string(layer), std::move(spec)});
  }
  const std::size_t uniform = formats.size();
  for (const SizedPlan& plan : plans) {
    CacheSpec spec = *formats.front().spec;
    spec.layers = plan.layers;
    formats.push_back({fmt::format("{} {}", plan.method, plan.budget),
                       std::make_shared<const CacheSpec>(std::move(spec))});
  }
  EvaluationInput input;
  input.windows = windows;
  KVQ_ASSIGN_OR_RETURN(const Evaluation evaluation,
                       evaluate(engine, formats, input, options.cache.pool()));
  document.text.nll_16bit = *evaluation.reference_nll;
  for (std::size_t i = 0; i < uniform; ++i) {
    document.formats.push_back(measured(evaluation.formats[i]));
  }
  for (std::size_t i = 0; i < plans.size(); ++i) {
    MeasuredPlan& plan = document.plans.emplace_back(MeasuredPlan{
        plans[i].method, plans[i].budget, {}, measured(evaluation.formats[uniform + i])});
    for (const LayerSpec& layer : plans[i].layers) plan.layers.push_back(to_string(layer));
  }
  return {};
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
  KVQ_ASSIGN_OR_RETURN(LoadedModel model, load_model(options.model, options.machine));
  KVQ_ASSIGN_OR_RETURN(
      const std::vector<TokenWindow> windows,
      read_windows(model, options.text_file, options.windows, options.seed, options.cache.pool()));
  Document document;
  describe(options, model.engine.config(), windows, document);
  KVQ_ASSIGN_OR_RETURN(const WeightNormTables norms, measure_weights(model.engine, options));
  document.weight_norms = WeightNorms{norms.frobenius.keys, norms.frobenius.values,
                                      norms.spectral.keys, norms.spectral.values};
  KVQ_RETURN_IF_ERROR(measure_layers(model.engine, options, windows, document));
  std::vector<SizedPlan> plans;
  if (options.sensitivity_windows > 0) {
    KVQ_ASSIGN_OR_RETURN(plans, plan_layers(model, options, norms.frobenius, document));
  }
  KVQ_RETURN_IF_ERROR(measure_formats(model.engine, options, windows, plans, document));
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
  app->add_option("--text", options->text_file,
                  "Text to measure on [sampled from the model itself]")
      ->type_name("FILE");
  app->add_option("--windows", options->windows,
                  fmt::format("Windows of {} tokens of that text, at most [{}]", kWindowTokens,
                              kDefaultWindows))
      ->type_name("N")
      ->check(CLI::Range(1, 1 << 20));
  app->add_option("--sensitivity", options->sensitivity_windows,
                  fmt::format("Windows, written by the model, on which every tensor's widths are "
                              "tried and plans are made; 0 for none [{}]",
                              kDefaultSensitivityWindows))
      ->type_name("N")
      ->check(CLI::Range(0, 1 << 16));
  options->cache.add(*app, /*several=*/false);
  app->add_option("--seed", options->seed, "Seed of the text that the model writes [0]")
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
