// Lists of widths and group sizes as they are typed: "1,1.58,2", "32,64".
#pragma once

#include <string>
#include <vector>

#include "kvq/base/status.h"
#include "kvq/codec/spec.h"

namespace kvq {

// Ascending. Empty lists, unknown and repeated entries are errors.
Result<std::vector<Bits>> parse_widths(const std::string& text);
Result<std::vector<int>> parse_groups(const std::string& text);

}  // namespace kvq
