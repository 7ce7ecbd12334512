// kvq eval: what a cache format costs in accuracy.
#include "kvq/eval/evaluate.h"

#include <algorithm>
#include <cmath>
#include <set>

#include "apps/kvq/command.h"
#include "apps/kvq/formats.h"
#include "apps/kvq/options.h"
#include "apps/kvq/output.h"
#include "kvq/base/file.h"

namespace kvq {
namespace {

constexpr int kDefaultWindows = 8;

struct EvalOptions {
  ModelOptions model;
  MachineOptions machine;
  CacheOptions cache;
  JsonOption json;
  std::string text_file;
  int windows = -1;  // negative = not given
  std::vector<std::string> task_files;
  int limit = 0;
  bool free_running = false;
  std::uint64_t seed = 0;

  int window_count() const {
    if (windows >= 0) return windows;
    return machine.prefill == "exact" ? 0 : kDefaultWindows;
  }
};

Result<EvaluationInput> read_input(const EvalOptions& options, LoadedModel& model) {
  EvaluationInput input;
  if (options.free_running) input.task_mode = TaskMode::kGenerate;
  std::set<std::string> names;
  for (const std::string& file : options.task_files) {
    KVQ_ASSIGN_OR_RETURN(
        Task task, read_task(file, model.tokenizer, model.engine.config().context, options.limit));
    if (!names.insert(task.name).second) {
      return fail("{}: another task file is called {} too", file, task.name);
    }
    input.tasks.push_back(std::move(task));
  }
  if (const int count = options.window_count(); count > 0) {
    KVQ_ASSIGN_OR_RETURN(input.windows,
                         read_windows(model.engine, model.tokenizer, options.text_file, count,
                                      options.seed, options.cache.pool()));
  }
  return input;
}

Table make_table(const Evaluation& evaluation, const EvaluationInput& input) {
  std::vector<std::string> header = {"format", "bits", "cache", "size"};
  if (evaluation.reference_nll) {
    header.insert(header.end(), {"perplexity", "KL", "top-1"});
  }
  for (const Task& task : input.tasks) header.push_back(task.name);
  Table table(std::move(header));
  for (const FormatResult& format : evaluation.formats) {
    std::vector<std::string> row = {format.name, fmt::format("{:.3f}", format.effective_bits),
                                    human_bytes(format.cache_bytes)};
    const auto spec_bytes = static_cast<double>(format.cache_bytes);
    row.push_back(
        fmt::format("{:.0f} %", 100 * spec_bytes / static_cast<double>(format.cache_bytes_16bit)));
    if (format.text) {
      row.push_back(fmt::format("{:.3f}", std::exp(format.text->nll)));
      row.push_back(fmt::format("{:.5f}", format.text->kl));
      row.push_back(fmt::format("{:.1f} %", 100 * format.text->top1));
    }
    for (const auto& [name, score] : format.tasks) {
      row.push_back(fmt::format("{:.1f} %", 100 * score.accuracy()));
    }
    table.add(std::move(row));
  }
  return table;
}

void print_input(std::FILE* out, const EvalOptions& options, const EvaluationInput& input,
                 const Evaluation& evaluation, const CacheSpec& cache, int context) {
  if (evaluation.reference_nll) {
    fmt::print(out, "text   {}: {} windows of {} tokens, perplexity in 16 bits {:.3f}\n",
               options.text_file.empty()
                   ? fmt::format("written by the model itself (seed {})", options.seed)
                   : options.text_file,
               input.windows.size(),
               with_commas(static_cast<std::int64_t>(input.windows[0].size())),
               std::exp(*evaluation.reference_nll));
  }
  for (const Task& task : input.tasks) {
    fmt::print(out, "task   {}: {} items, exact match{}\n", task.name, task.items.size(),
               options.free_running ? ", free running" : "");
  }
  fmt::print(out, "cache  at {} tokens, of which the first {} and the newest {} in 16 bits\n\n",
             with_commas(std::int64_t{context}), cache.sinks, cache.window);
}

nlohmann::ordered_json to_json(const Evaluation& evaluation, const EvalOptions& options,
                               const EvaluationInput& input, const CacheSpec& cache) {
  nlohmann::ordered_json formats = nlohmann::ordered_json::array();
  for (const FormatResult& format : evaluation.formats) {
    nlohmann::ordered_json entry = {{"name", format.name},
                                    {"effective_bits", format.effective_bits},
                                    {"cache_bytes", format.cache_bytes},
                                    {"cache_bytes_16bit", format.cache_bytes_16bit},
                                    {"nll", nullptr},
                                    {"kl", nullptr},
                                    {"top1", nullptr},
                                    {"tasks", nlohmann::ordered_json::object()}};
    if (format.text) {
      entry["nll"] = format.text->nll;
      entry["kl"] = format.text->kl;
      entry["top1"] = format.text->top1;
    }
    for (const auto& [name, score] : format.tasks) {
      entry["tasks"][name] = {{"accuracy", score.accuracy()}, {"n", score.items}};
    }
    formats.push_back(std::move(entry));
  }
  nlohmann::ordered_json result = {{"model", options.model.label()},
                                   {"sinks", cache.sinks},
                                   {"window", cache.window},
                                   {"text", nullptr},
                                   {"formats", std::move(formats)}};
  if (evaluation.reference_nll) {
    result["text"] = {{"file", nullptr},
                      {"windows", input.windows.size()},
                      {"tokens_per_window", input.windows[0].size()},
                      {"nll_16bit", *evaluation.reference_nll}};
    if (!options.text_file.empty()) result["text"]["file"] = options.text_file;
  }
  return result;
}

Result<int> run_eval(const EvalOptions& options) {
  KVQ_RETURN_IF_ERROR(options.json.check());
  KVQ_ASSIGN_OR_RETURN(LoadedModel model, load_model(options.model, options.machine));
  KVQ_ASSIGN_OR_RETURN(const std::filesystem::path directory, options.model.find());
  KVQ_ASSIGN_OR_RETURN(
      auto named, cache_formats(options.cache, model.engine.config(), directory, {kDefaultSpec}));
  std::vector<NamedSpec> formats;
  formats.reserve(named.size());
  for (CacheFormat& format : named) {
    formats.push_back({std::move(format.name), std::move(format.spec)});
  }
  const CacheSpec& first = *formats.front().spec;
  KVQ_ASSIGN_OR_RETURN(const EvaluationInput input, read_input(options, model));
  KVQ_ASSIGN_OR_RETURN(const Evaluation evaluation,
                       evaluate(model.engine, formats, input, options.cache.pool()));
  std::FILE* out = options.json.tables();
  print_input(out, options, input, evaluation, first, model.engine.config().context);
  make_table(evaluation, input).print(out);
  KVQ_RETURN_IF_ERROR(options.json.write(to_json(evaluation, options, input, first)));
  return 0;
}

// What the options mean together.
void check(const EvalOptions& options) {
  if (options.machine.prefill == "exact" && (options.windows > 0 || !options.text_file.empty())) {
    throw CLI::ValidationError(
        "--prefill exact",
        "a text window is one prefill, which would read nothing packed; give --tasks alone");
  }
  if (options.window_count() == 0 && options.task_files.empty()) {
    throw CLI::ValidationError("eval", "nothing to measure: no text windows and no --tasks");
  }
}

}  // namespace

Command add_eval(CLI::App& root) {
  CLI::App* app = root.add_subcommand("eval", "Measure what cache formats cost in accuracy");
  auto options = std::make_shared<EvalOptions>();
  options->model.add(*app);
  options->cache.add(*app, /*several=*/true);
  options->cache.add_plan(*app, /*several=*/true);
  app->add_option("--text", options->text_file,
                  "Text to measure perplexity and KL on [sampled from the model itself]")
      ->type_name("FILE");
  app->add_option("--windows", options->windows,
                  fmt::format("Windows of {} tokens of that text, at most; 0 for none [{}]",
                              kWindowTokens, kDefaultWindows))
      ->type_name("N")
      ->check(CLI::Range(0, 1 << 20));
  app->add_option("--tasks", options->task_files,
                  "Lines of {\"prompt\": TEXT, \"answer\": TEXT} (repeatable)")
      ->type_name("FILE.jsonl")
      ->allow_extra_args(false);
  app->add_option("--limit", options->limit, "Items of each task, at most [all]")
      ->type_name("N")
      ->check(CLI::Range(1, 1 << 30));
  app->add_flag("--generate", options->free_running,
                "Let tasks generate their answers token by token");
  app->add_option("--seed", options->seed, "Seed of the text that the model writes [0]")
      ->type_name("N");
  options->cache.add_memory(*app, "Memory for the caches; a run that needs more fails [no limit]");
  options->machine.add_prefill(*app);
  options->machine.add_threads(*app);
  options->machine.add_isa(*app);
  options->machine.add_device(*app);
  options->json.add(*app);
  app->parse_complete_callback([options] { check(*options); });
  app->footer(fmt::format(
      "KL is the mean over all positions of the divergence of the next-token\n"
      "distribution from that of a 16-bit cache. An item of a task counts when every\n"
      "token of its answer is the likeliest. Without --text the model writes the text\n"
      "itself, sampling at temperature 1 on a 16-bit cache. In the table: bits = stored\n"
      "bits of a packed number, parameters included; KL in nats; top-1 = how often the\n"
      "likeliest token is that of a 16-bit cache. The default format is {}.",
      kDefaultSpec));
  return {app, [options] { return run_eval(*options); }};
}

}  // namespace kvq
