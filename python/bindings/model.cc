// kvq._model: what runs a whole model, on kvq's own runtime. A module of its own, because that
// brings oneDNN with it, which takes long to load and most of the package does without.
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "kvq/analysis/page_budget.h"
#include "kvq/analysis/plan_model.h"
#include "kvq/analysis/sensitivity_plan.h"
#include "kvq/model/checkpoint.h"
#include "kvq/plan/format_lists.h"
#include "kvq/report/measure.h"
#include "kvq/report/page.h"
#include "python/bindings/errors.h"
#include "python/bindings/interrupt.h"

namespace kvq::python {
namespace {

namespace nb = nanobind;
using namespace nb::literals;

struct LoadedModel {
  Engine engine;
  Tokenizer tokenizer;
};

Result<LoadedModel> load_model(const std::filesystem::path& directory, int threads, Isa isa,
                               const std::atomic<bool>& interrupted) {
  EngineOptions options;
  options.threads = threads;
  options.isa = isa;
  options.interrupted = &interrupted;
  KVQ_ASSIGN_OR_RETURN(Tokenizer tokenizer, Tokenizer::open(directory));
  KVQ_ASSIGN_OR_RETURN(Engine engine, Engine::load(directory, options));
  return LoadedModel{std::move(engine), std::move(tokenizer)};
}

struct Calibrated {
  Plan plan;
  double divergence;
};

Result<Calibrated> make_plan(const std::string& model, const PlanBudget& budget,
                             const SensitivityPlanOptions& options, int threads,
                             const std::atomic<bool>& interrupted) {
  const SensitivityOptions& sensitivity = options.sensitivity;
  KVQ_ASSIGN_OR_RETURN(const std::filesystem::path directory, find_model(model));
  KVQ_ASSIGN_OR_RETURN(LoadedModel loaded,
                       load_model(directory, threads, sensitivity.isa, interrupted));
  Plan plan;
  plan.method = "sensitivity";
  plan.budget = budget.bits;
  plan.sinks = sensitivity.sinks;
  plan.window = sensitivity.window;
  KVQ_ASSIGN_OR_RETURN(plan.model, plan_model(loaded.engine.config(), directory));
  KVQ_ASSIGN_OR_RETURN(const std::int64_t bytes,
                       page_budget(budget, plan.model, plan.sinks, plan.window));
  KVQ_ASSIGN_OR_RETURN(
      CalibratedPlan found,
      plan_by_sensitivity(loaded.engine, loaded.tokenizer, bytes, options, PagePool::create(0)));
  plan.layers = std::move(found.layers);
  plan.effective_bits = effective_bits(plan.layers, plan.model.head_dim);
  KVQ_RETURN_IF_ERROR(validate(plan));
  return Calibrated{std::move(plan), found.divergence};
}

// At least `least`, for errors that name the parameter.
void check_count(const char* name, int value, int least) {
  if (value < least) take(fail("{}: expected at least {}, found {}", name, least, value));
}

// A check of widths or groups that names the parameter.
template <typename List>
List named(const char* name, Result<List> list) {
  if (!list) take(fail("{}: {}", name, list.error().message));
  return *std::move(list);
}

std::tuple<std::string, double> plan_by_sensitivity_of(
    const std::string& model, double budget, std::int64_t memory, std::int64_t tokens,
    std::int64_t batch, const std::optional<std::string>& bits,
    const std::optional<std::string>& groups, const std::string& sensitivity,
    std::optional<std::string> calibration, const std::string& calibration_name,
    std::optional<int> windows, std::optional<int> copies, std::optional<int> rounds,
    std::uint64_t seed, int sinks, int window, int threads) {
  SensitivityPlanOptions options;
  if (sensitivity != "attention" && sensitivity != "kl") {
    take(fail("sensitivity: expected attention or kl, found '{}'", sensitivity));
  }
  options.sensitivity.mode =
      sensitivity == "kl" ? SensitivityMode::kOutput : SensitivityMode::kAttention;
  CandidateOptions& candidates = options.sensitivity.candidates;
  if (bits) candidates.bits = named("bits", parse_widths(*bits));
  if (groups) candidates.groups = named("groups", parse_groups(*groups));
  options.sensitivity.sinks = sinks;
  options.sensitivity.window = window;
  options.sensitivity.isa = take(default_isa());
  options.calibration.text = std::move(calibration);
  options.calibration.name = calibration_name;
  options.calibration.windows = windows.value_or(options.calibration.windows);
  options.calibration.copies = copies.value_or(options.calibration.copies);
  options.calibration.seed = seed;
  options.rounds = rounds.value_or(options.rounds);
  check_count("windows", options.calibration.windows, 1);
  check_count("copies", options.calibration.copies, 0);
  check_count("rounds", options.rounds, 0);
  const PlanBudget size{budget, memory, tokens, batch};
  const Calibrated made = take(run_interruptible([&](const std::atomic<bool>& interrupted) {
    return make_plan(model, size, options, threads, interrupted);
  }));
  return {to_json(made.plan), made.divergence};
}

Result<std::string> measure(const std::string& model, const MeasureOptions& options, int threads,
                            const std::atomic<bool>& interrupted) {
  KVQ_ASSIGN_OR_RETURN(const std::filesystem::path directory, find_model(model));
  KVQ_ASSIGN_OR_RETURN(LoadedModel loaded,
                       load_model(directory, threads, options.isa, interrupted));
  KVQ_ASSIGN_OR_RETURN(
      const Document document,
      measure_document(loaded.engine, loaded.tokenizer, directory, options, PagePool::create(0)));
  return to_json(document).dump(1, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
}

std::string analyze(const std::string& model, const std::string& text_file,
                    std::optional<int> windows, std::optional<int> sensitivity_windows,
                    std::uint64_t seed, const std::string& spec, int sinks, int window,
                    int threads) {
  MeasureOptions options;
  options.program = "kvq " KVQ_VERSION;
  options.label = model;
  options.model = model;
  options.text_file = text_file;
  options.windows = windows.value_or(options.windows);
  options.sensitivity_windows = sensitivity_windows.value_or(options.sensitivity_windows);
  options.seed = seed;
  options.base = take(parse_layer_spec(spec));
  options.sinks = sinks;
  options.window = window;
  options.isa = take(default_isa());
  check_count("windows", options.windows, 1);
  check_count("sensitivity", options.sensitivity_windows, 0);
  return take(run_interruptible([&](const std::atomic<bool>& interrupted) {
    return measure(model, options, threads, interrupted);
  }));
}

std::string page(const std::vector<std::string>& results) {
  std::vector<Document> documents;
  documents.reserve(results.size());
  for (const std::string& result : results) {
    documents.push_back(take(parse_document(nlohmann::json::parse(result), "analyze")));
  }
  return make_page(std::move(documents));
}

}  // namespace
}  // namespace kvq::python

NB_MODULE(_model, module) {
  using namespace kvq::python;
  using namespace nanobind::literals;
  module.def(
      "plan_by_sensitivity", &plan_by_sensitivity_of, "model"_a, "budget"_a, "memory"_a, "tokens"_a,
      "batch"_a, "bits"_a.none(), "groups"_a.none(), "sensitivity"_a, "calibration"_a.none(),
      "calibration_name"_a, "windows"_a.none(), "copies"_a.none(), "rounds"_a.none(), "seed"_a,
      "sinks"_a, "window"_a, "threads"_a,
      "The text of a plan's file, and the plan's divergence on the calibration text, nats.\n"
      "`budget` 0: what fits into `memory`. `calibration`: a text, None: the model writes it.");
  module.def("analyze", &analyze, "model"_a, "text_file"_a, "windows"_a.none(),
             "sensitivity"_a.none(), "seed"_a, "spec"_a, "sinks"_a, "window"_a, "threads"_a,
             "What kvq analyze --json writes.");
  module.def("page", &page, "results"_a,
             "The page about one result of analyze(), or one that compares several, as HTML.");
}
