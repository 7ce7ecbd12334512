#include "apps/kvq/plan_sensitivity.h"

#include "kvq/analysis/plan_model.h"
#include "kvq/base/file.h"

namespace kvq {

void SensitivityChoice::add(CLI::App& app) {
  CalibrationOptions& calibration = plan.calibration;
  app.add_option("--sensitivity", mode,
                 "How formats' effects are measured: two formats a tensor on the model's output, "
                 "the others on their layer's attention (attention), or all on the output (kl) "
                 "[attention]")
      ->type_name("attention|kl")
      ->check(CLI::IsMember({"attention", "kl"}));
  app.add_option("--calibration", calibration_file,
                 "Text that formats are tried on [written by the model itself]")
      ->type_name("FILE");
  app.add_option("--windows", calibration.windows,
                 fmt::format("Windows of {} tokens of that text, at most [{}]", kWindowTokens,
                             calibration.windows))
      ->type_name("N")
      ->check(CLI::Range(1, 1 << 16));
  app.add_option("--copies", calibration.copies,
                 fmt::format("Windows that repeat random tokens of it, so that looking up far "
                             "behind counts [{}]",
                             calibration.copies))
      ->type_name("N")
      ->check(CLI::Range(0, 1 << 16));
  app.add_option(
         "--rounds", plan.rounds,
         fmt::format("Rounds of measuring the plan as a whole and improving it [{}]", plan.rounds))
      ->type_name("N")
      ->check(CLI::Range(0, 100));
  app.add_option("--seed", calibration.seed,
                 "Seed of text that the model writes, and of copies [0]")
      ->type_name("N");
}

Result<SensitivityPlan> run_sensitivity_plan(
    const ModelOptions& model, const MachineOptions& machine, const CacheOptions& cache,
    const SensitivityChoice& choice, const CandidateOptions& candidates, const PlanBudget& budget) {
  SensitivityPlanOptions options = choice.plan;
  SensitivityOptions& sensitivity = options.sensitivity;
  sensitivity.mode = choice.mode == "kl" ? SensitivityMode::kOutput : SensitivityMode::kAttention;
  sensitivity.candidates = candidates;
  sensitivity.sinks = cache.sinks;
  sensitivity.window = cache.window;
  KVQ_ASSIGN_OR_RETURN(sensitivity.isa, machine.chosen_isa());
  CalibrationOptions& calibration = options.calibration;
  std::string source = fmt::format("text that the model wrote (seed {})", calibration.seed);
  if (!choice.calibration_file.empty()) {
    KVQ_ASSIGN_OR_RETURN(calibration.text, read_file(choice.calibration_file));
    source = calibration.name = choice.calibration_file;
  }
  KVQ_ASSIGN_OR_RETURN(LoadedModel loaded, load_model(model, machine));
  KVQ_ASSIGN_OR_RETURN(const std::filesystem::path directory, model.find());
  SensitivityPlan plan;
  KVQ_ASSIGN_OR_RETURN(plan.model, plan_model(loaded.engine.config(), directory));
  const auto bytes = page_budget(budget, plan.model, cache.sinks, cache.window);
  if (!bytes) return fail("--{}", bytes.error().message);
  KVQ_ASSIGN_OR_RETURN(
      CalibratedPlan found,
      plan_by_sensitivity(loaded.engine, loaded.tokenizer, *bytes, options, PagePool::create(0)));
  plan.layers = std::move(found.layers);
  plan.divergence = found.divergence;
  plan.text = fmt::format("{} windows of {}, {} of repeated tokens", found.windows, source,
                          calibration.copies);
  return plan;
}

}  // namespace kvq
