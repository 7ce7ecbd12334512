// Everything that is measured about a list of cache formats.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "kvq/eval/task_score.h"
#include "kvq/eval/text_score.h"
#include "kvq/eval/windows.h"
#include "kvq/runtime/engine.h"

namespace kvq {

struct EvaluationInput {
  std::vector<TokenWindow> windows;  // may be empty: no text scores
  std::vector<Task> tasks;           // may be empty
  TaskMode task_mode = TaskMode::kTeacherForced;
};

struct NamedSpec {
  std::string name;
  std::shared_ptr<const CacheSpec> spec;
};

struct FormatResult {
  std::string name;
  double effective_bits = 0;     // stored bits a packed number, parameters and padding included
  std::int64_t cache_bytes = 0;  // of one sequence that fills the model's context
  std::int64_t cache_bytes_16bit = 0;  // the same in plain fp16
  std::optional<TextScore> text;
  std::vector<std::pair<std::string, TaskScore>> tasks;  // in the order of the input
};

struct Evaluation {
  std::optional<double> reference_nll;  // of the text on a 16-bit cache
  std::vector<FormatResult> formats;
};

Result<Evaluation> evaluate(Engine& engine, const std::vector<NamedSpec>& formats,
                            const EvaluationInput& input, const std::shared_ptr<PagePool>& pool);

}  // namespace kvq
