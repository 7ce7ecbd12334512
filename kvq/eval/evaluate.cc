#include "kvq/eval/evaluate.h"

namespace kvq {

Result<Evaluation> evaluate(Engine& engine, const std::vector<NamedSpec>& formats,
                            const EvaluationInput& input, const std::shared_ptr<PagePool>& pool) {
  Evaluation result;
  std::vector<std::shared_ptr<const CacheSpec>> specs;
  const int context = engine.config().context;
  for (const NamedSpec& format : formats) {
    specs.push_back(format.spec);
    result.formats.push_back({.name = format.name,
                              .effective_bits = effective_bits(*format.spec),
                              .cache_bytes = cache_bytes(*format.spec, context),
                              .cache_bytes_16bit = cache_bytes_16bit(*format.spec, context),
                              .text = std::nullopt,
                              .tasks = {}});
  }
  if (!input.windows.empty()) {
    const auto reference =
        std::make_shared<const CacheSpec>(engine.cache_spec(LayerSpec{}, 0, kPageTokens));
    KVQ_ASSIGN_OR_RETURN(const TextScores scores,
                         score_text(engine, input.windows, reference, specs, pool));
    result.reference_nll = scores.reference_nll;
    for (std::size_t i = 0; i < specs.size(); ++i) result.formats[i].text = scores.formats[i];
  }
  for (const Task& task : input.tasks) {
    for (std::size_t i = 0; i < specs.size(); ++i) {
      KVQ_ASSIGN_OR_RETURN(const TaskScore score,
                           score_task(engine, task, specs[i], pool, input.task_mode));
      result.formats[i].tasks.emplace_back(task.name, score);
    }
  }
  return result;
}

}  // namespace kvq
