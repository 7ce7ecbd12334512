#include "kvq/model/post_processor.h"

#include <limits>

#include "kvq/model/sequence_steps.h"

namespace kvq {

Result<PostProcessor> PostProcessor::read(const JsonFields& tokenizer) {
  PostProcessor processor;
  if (!tokenizer.has("post_processor")) return processor;
  KVQ_ASSIGN_OR_RETURN(const JsonFields field, tokenizer.object("post_processor"));
  processor.where_ = field.where();
  KVQ_ASSIGN_OR_RETURN(const std::vector<JsonFields> steps, sequence_steps(field, "processors"));
  for (const JsonFields& step : steps) KVQ_RETURN_IF_ERROR(processor.add(step));
  return processor;
}

Status PostProcessor::add(const JsonFields& step) {
  KVQ_ASSIGN_OR_RETURN(const std::string type, step.text("type"));
  if (type == "ByteLevel") return {};
  if (type == "TemplateProcessing") return add_template(step);
  return step.wrong("type", "\"TemplateProcessing\" or \"ByteLevel\"");
}

// "single": special tokens and, once, the text ("Sequence" A).
Status PostProcessor::add_template(const JsonFields& step) {
  KVQ_ASSIGN_OR_RETURN(const Json* items, step.list("single"));
  std::vector<int> before;
  std::vector<int> after;
  int texts = 0;
  for (const Json& item : *items) {
    if (item.is_object() && item.contains("Sequence")) {
      ++texts;
      continue;
    }
    KVQ_ASSIGN_OR_RETURN(const std::vector<int> ids, special_token_ids(step, item));
    std::vector<int>& side = texts == 0 ? before : after;
    side.insert(side.end(), ids.begin(), ids.end());
  }
  if (texts != 1) return step.wrong("single", "the text (Sequence) once");
  before_.insert(before_.begin(), before.begin(), before.end());
  after_.insert(after_.end(), after.begin(), after.end());
  return {};
}

Result<std::vector<int>> PostProcessor::special_token_ids(const JsonFields& step,
                                                          const Json& item) const {
  if (!item.is_object() || !item.contains("SpecialToken")) {
    return step.wrong("single", "items SpecialToken or Sequence");
  }
  const JsonFields fields(item, step.where() + ": single");
  KVQ_ASSIGN_OR_RETURN(const JsonFields reference, fields.object("SpecialToken"));
  KVQ_ASSIGN_OR_RETURN(const std::string token_name, reference.text("id"));
  KVQ_ASSIGN_OR_RETURN(const JsonFields known, step.object("special_tokens"));
  KVQ_ASSIGN_OR_RETURN(const JsonFields token, known.object(token_name));
  KVQ_ASSIGN_OR_RETURN(const Json* list, token.list("ids"));
  std::vector<int> ids;
  for (const Json& id : *list) {
    if (!id.is_number_unsigned() ||
        id.get<std::uint64_t>() > std::numeric_limits<std::int32_t>::max()) {
      return token.wrong("ids", "a list of token ids");
    }
    ids.push_back(id.get<int>());
  }
  return ids;
}

Status PostProcessor::check_ids(int size) const {
  for (const auto* side : {&before_, &after_}) {
    for (const int id : *side) {
      if (id >= size) return fail("{}: expected token ids below {}, found {}", where_, size, id);
    }
  }
  return {};
}

void PostProcessor::apply(std::vector<int>& tokens) const {
  tokens.insert(tokens.begin(), before_.begin(), before_.end());
  tokens.insert(tokens.end(), after_.begin(), after_.end());
}

}  // namespace kvq
