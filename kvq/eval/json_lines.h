// Files with one JSON object a line.
#pragma once

#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "kvq/base/status.h"

namespace kvq {

struct JsonLine {
  int number = 0;  // of the line, from 1
  nlohmann::json object;
};

// Every line of the file that is not blank, at most `limit` of them (0 = all). A line that is not a
// JSON object, and a file without any, is an error that names file and line.
Result<std::vector<JsonLine>> read_json_lines(const std::filesystem::path& path, int limit = 0);

// The string `field` of a line of `path`, not empty.
Result<std::string> string_field(const std::filesystem::path& path, const JsonLine& line,
                                 std::string_view field);

}  // namespace kvq
