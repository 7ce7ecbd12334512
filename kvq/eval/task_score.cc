#include "kvq/eval/task_score.h"

#include <algorithm>
#include <span>

#include "kvq/base/progress.h"
#include "kvq/eval/distribution.h"
#include "kvq/eval/json_lines.h"
#include "kvq/runtime/generate.h"

namespace kvq {
namespace {

// Items that run through the model together.
constexpr std::size_t kBatch = 16;

// How many of the items are answered right, teacher forced: the prompts in one pass, then, of those
// whose first token is right, all but the last answer token in another.
class TeacherForced {
 public:
  TeacherForced(Engine& engine, std::span<const TaskItem> items)
      : engine_(engine), items_(items), vocabulary_(engine.config().vocabulary) {}

  Result<int> run(const std::shared_ptr<const CacheSpec>& spec,
                  const std::shared_ptr<PagePool>& pool) {
    std::vector<Chunk> chunks;
    sequences_.reserve(items_.size());
    for (const TaskItem& item : items_) {
      KVQ_ASSIGN_OR_RETURN(Sequence sequence, engine_.new_sequence(spec, pool));
      sequences_.push_back(std::move(sequence));
      chunks.push_back({&sequences_.back(), item.prompt});
    }
    KVQ_ASSIGN_OR_RETURN(const auto logits, engine_.forward(chunks, LogitRows::kLast));
    std::vector<std::size_t> open;  // right so far, more tokens to check
    int correct = 0;
    for (std::size_t i = 0; i < items_.size(); ++i) {
      if (pick(logits, i) != items_[i].answer.front()) continue;
      if (items_[i].answer.size() == 1)
        ++correct;
      else
        open.push_back(i);
    }
    KVQ_ASSIGN_OR_RETURN(const int rest, check_rest(open));
    return correct + rest;
  }

 private:
  int pick(std::span<const float> logits, std::size_t row) const {
    return arg_max(&logits[row * static_cast<std::size_t>(vocabulary_)], vocabulary_);
  }

  Result<int> check_rest(const std::vector<std::size_t>& open) {
    if (open.empty()) return 0;
    std::vector<Chunk> chunks;
    for (const std::size_t i : open) {
      const std::span<const int> answer = items_[i].answer;
      chunks.push_back({&sequences_[i], answer.first(answer.size() - 1)});
    }
    KVQ_ASSIGN_OR_RETURN(const auto logits, engine_.forward(chunks, LogitRows::kAll));
    int correct = 0;
    std::size_t row = 0;
    for (const std::size_t i : open) {
      const std::vector<int>& answer = items_[i].answer;
      bool right = true;
      for (std::size_t token = 1; token < answer.size(); ++token, ++row) {
        right = right && pick(logits, row) == answer[token];
      }
      correct += right ? 1 : 0;
    }
    return correct;
  }

  Engine& engine_;
  std::span<const TaskItem> items_;
  int vocabulary_;
  std::vector<Sequence> sequences_;
};

Result<int> count_generated(Engine& engine, std::span<const TaskItem> items,
                            const std::shared_ptr<const CacheSpec>& spec,
                            const std::shared_ptr<PagePool>& pool) {
  std::vector<std::vector<int>> prompts;
  GenerateOptions options;
  options.max_new_tokens = 0;
  options.ignore_stop_tokens = true;
  for (const TaskItem& item : items) {
    prompts.push_back(item.prompt);
    options.max_new_tokens = std::max(options.max_new_tokens, static_cast<int>(item.answer.size()));
  }
  KVQ_ASSIGN_OR_RETURN(const Generation result, generate(engine, prompts, spec, pool, options));
  int correct = 0;
  for (std::size_t i = 0; i < items.size(); ++i) {
    const auto& answer = items[i].answer;
    const auto& tokens = result.tokens[i];
    const bool right =
        tokens.size() >= answer.size() && std::equal(answer.begin(), answer.end(), tokens.begin());
    correct += right ? 1 : 0;
  }
  return correct;
}

}  // namespace

Result<Task> read_task(const std::filesystem::path& path, const Tokenizer& tokenizer, int context,
                       int limit) {
  KVQ_ASSIGN_OR_RETURN(const auto lines, read_json_lines(path, limit));
  Task task{.name = path.stem().string(), .items = {}};
  for (const JsonLine& line : lines) {
    KVQ_ASSIGN_OR_RETURN(const std::string prompt, string_field(path, line, "prompt"));
    KVQ_ASSIGN_OR_RETURN(const std::string answer, string_field(path, line, "answer"));
    TaskItem item;
    KVQ_ASSIGN_OR_RETURN(item.prompt, tokenizer.encode(prompt, true));
    KVQ_ASSIGN_OR_RETURN(item.answer, tokenizer.encode(answer, false));
    const std::size_t tokens = item.prompt.size() + item.answer.size();
    if (tokens > static_cast<std::size_t>(context)) {
      return fail("{}:{}: the item has {} tokens, the model's context is {}", path.string(),
                  line.number, tokens, context);
    }
    task.items.push_back(std::move(item));
  }
  return task;
}

Result<TaskScore> score_task(Engine& engine, const Task& task,
                             const std::shared_ptr<const CacheSpec>& spec,
                             const std::shared_ptr<PagePool>& pool, TaskMode mode) {
  TaskScore score;
  Progress progress(task.name, static_cast<long>(task.items.size()));
  const std::span<const TaskItem> items = task.items;
  for (std::size_t start = 0; start < items.size(); start += kBatch) {
    const auto batch = items.subspan(start, std::min(kBatch, items.size() - start));
    auto correct = mode == TaskMode::kGenerate ? count_generated(engine, batch, spec, pool)
                                               : TeacherForced(engine, batch).run(spec, pool);
    if (!correct) return tl::unexpected(std::move(correct).error());
    score.correct += *correct;
    score.items += static_cast<int>(batch.size());
    progress.advance(static_cast<long>(batch.size()));
  }
  return score;
}

}  // namespace kvq
