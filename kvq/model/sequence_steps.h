// Steps that tokenizer.json lists in a "Sequence".
#pragma once

#include <string_view>
#include <vector>

#include "kvq/base/json_file.h"

namespace kvq {

// The steps of a "Sequence" (in `list_field`), or the one step that stands there.
Result<std::vector<JsonFields>> sequence_steps(const JsonFields& step, std::string_view list_field);

}  // namespace kvq
