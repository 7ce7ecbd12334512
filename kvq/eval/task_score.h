// Exact-match tasks: a prompt, and the answer that must follow.
#pragma once

#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "kvq/model/tokenizer.h"
#include "kvq/runtime/engine.h"

namespace kvq {

struct TaskItem {
  std::vector<int> prompt;  // special tokens as the tokenizer adds them
  std::vector<int> answer;  // without special tokens; not empty
};

struct Task {
  std::string name;
  std::vector<TaskItem> items;
};

// Reads lines of {"prompt": text, "answer": text}, at most `limit` (0 = all); the task is called
// like the file. An item longer than `context` tokens is an error.
Result<Task> read_task(const std::filesystem::path& path, const Tokenizer& tokenizer, int context,
                       int limit);

struct TaskScore {
  int correct = 0;
  int items = 0;
  double accuracy() const { return items > 0 ? static_cast<double>(correct) / items : 0; }
};

enum class TaskMode : std::uint8_t {
  kTeacherForced,  // every answer token is the arg-max after the answer tokens before it
  kGenerate,       // greedy generation from the prompt begins with the answer
};

// The two modes ask the same question; kGenerate decodes the answer token by token.
Result<TaskScore> score_task(Engine& engine, const Task& task,
                             const std::shared_ptr<const CacheSpec>& spec,
                             const std::shared_ptr<PagePool>& pool, TaskMode mode);

}  // namespace kvq
