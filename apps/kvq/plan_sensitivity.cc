#include "apps/kvq/plan_sensitivity.h"

#include <algorithm>

#include "apps/kvq/formats.h"
#include "kvq/analysis/calibration.h"
#include "kvq/analysis/refinement.h"
#include "kvq/base/file.h"
#include "kvq/eval/windows.h"

namespace kvq {
namespace {

// Windows from all over the text: beginnings of books and articles are alike.
Result<std::vector<TokenWindow>> spread_windows(const Tokenizer& tokenizer, std::string_view text,
                                                const WindowOptions& options) {
  WindowOptions all = options;
  all.count = static_cast<int>(text.size());  // more than there are
  KVQ_ASSIGN_OR_RETURN(std::vector<TokenWindow> windows, cut_windows(tokenizer, text, all));
  const auto count = std::min(windows.size(), static_cast<std::size_t>(options.count));
  std::vector<TokenWindow> spread;
  spread.reserve(count);
  for (std::size_t i = 0; i < count; ++i) {
    spread.push_back(std::move(windows[i * windows.size() / count]));
  }
  return spread;
}

Result<std::vector<TokenWindow>> read_calibration(LoadedModel& model,
                                                  const SensitivityChoice& choice,
                                                  const std::shared_ptr<PagePool>& pool) {
  const WindowOptions options = {.count = choice.windows,
                                 .tokens = std::min(kWindowTokens, model.engine.config().context)};
  std::vector<TokenWindow> windows;
  if (choice.calibration_file.empty()) {
    KVQ_ASSIGN_OR_RETURN(windows, write_windows(model.engine, model.tokenizer, options,
                                                Opening::kRandom, choice.seed, pool));
  } else {
    KVQ_ASSIGN_OR_RETURN(const std::string text, read_file(choice.calibration_file));
    auto spread = spread_windows(model.tokenizer, text, options);
    if (!spread) return fail("{}: {}", choice.calibration_file, spread.error().message);
    windows = *std::move(spread);
  }
  auto copies = copy_windows(windows, choice.copies, options.tokens, choice.seed);
  windows.insert(windows.end(), std::make_move_iterator(copies.begin()),
                 std::make_move_iterator(copies.end()));
  return windows;
}

}  // namespace

void SensitivityChoice::add(CLI::App& app) {
  app.add_option("--sensitivity", mode,
                 "How formats' effects are measured: two formats a tensor on the model's output, "
                 "the others on their layer's attention (attention), or all on the output (kl) "
                 "[attention]")
      ->type_name("attention|kl")
      ->check(CLI::IsMember({"attention", "kl"}));
  app.add_option("--calibration", calibration_file,
                 "Text that formats are tried on [written by the model itself]")
      ->type_name("FILE");
  app.add_option(
         "--windows", windows,
         fmt::format("Windows of {} tokens of that text, at most [{}]", kWindowTokens, windows))
      ->type_name("N")
      ->check(CLI::Range(1, 1 << 16));
  app.add_option("--copies", copies,
                 fmt::format("Windows that repeat random tokens of it, so that looking up far "
                             "behind counts [{}]",
                             copies))
      ->type_name("N")
      ->check(CLI::Range(0, 1 << 16));
  app.add_option(
         "--rounds", rounds,
         fmt::format("Rounds of measuring the plan as a whole and improving it [{}]", rounds))
      ->type_name("N")
      ->check(CLI::Range(0, 100));
  app.add_option("--seed", seed, "Seed of text that the model writes, and of copies [0]")
      ->type_name("N");
}

Result<SensitivityPlan> plan_by_sensitivity(
    const ModelOptions& model, const MachineOptions& machine, const CacheOptions& cache,
    const SensitivityChoice& choice, const CandidateOptions& candidates, const PageBudget& budget) {
  KVQ_ASSIGN_OR_RETURN(LoadedModel loaded, load_model(model, machine));
  KVQ_ASSIGN_OR_RETURN(const std::filesystem::path directory, model.find());
  SensitivityPlan plan;
  KVQ_ASSIGN_OR_RETURN(plan.model, plan_model(loaded.engine.config(), directory));
  KVQ_ASSIGN_OR_RETURN(const std::int64_t budget_bytes, budget(plan.model));
  const auto pool = PagePool::create(0);
  KVQ_ASSIGN_OR_RETURN(const auto windows, read_calibration(loaded, choice, pool));
  SensitivityOptions options;
  options.mode = choice.mode == "kl" ? SensitivityMode::kOutput : SensitivityMode::kAttention;
  options.candidates = candidates;
  options.sinks = cache.sinks;
  options.window = cache.window;
  KVQ_ASSIGN_OR_RETURN(options.isa, machine.chosen_isa());
  KVQ_ASSIGN_OR_RETURN(const CostTable table,
                       measure_sensitivity(loaded.engine, windows, options, pool));
  KVQ_ASSIGN_OR_RETURN(RefinedPlan refined, refine_plan(loaded.engine, windows, table, budget_bytes,
                                                        choice.rounds, options, pool));
  plan.layers = std::move(refined.layers);
  plan.divergence = refined.divergence;
  plan.text = fmt::format("{} windows of {}, {} of repeated tokens",
                          windows.size() - static_cast<std::size_t>(choice.copies),
                          choice.calibration_file.empty()
                              ? fmt::format("text that the model wrote (seed {})", choice.seed)
                              : choice.calibration_file,
                          choice.copies);
  return plan;
}

}  // namespace kvq
