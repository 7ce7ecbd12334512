#include "kvq/model/sequence_steps.h"

namespace kvq {

Result<std::vector<JsonFields>> sequence_steps(const JsonFields& step,
                                               std::string_view list_field) {
  KVQ_ASSIGN_OR_RETURN(const std::string type, step.text("type"));
  if (type != "Sequence") return std::vector{step};
  KVQ_ASSIGN_OR_RETURN(const Json* list, step.list(list_field));
  std::vector<JsonFields> steps;
  for (std::size_t i = 0; i < list->size(); ++i) {
    const std::string where = fmt::format("{}: {}[{}]", step.where(), list_field, i);
    if (!(*list)[i].is_object()) {
      return fail("{}: expected an object, found {}", where, shown((*list)[i]));
    }
    steps.emplace_back((*list)[i], where);
  }
  return steps;
}

}  // namespace kvq
