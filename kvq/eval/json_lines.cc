#include "kvq/eval/json_lines.h"

#include "kvq/base/file.h"

namespace kvq {

Result<std::vector<JsonLine>> read_json_lines(const std::filesystem::path& path, int limit) {
  KVQ_ASSIGN_OR_RETURN(const std::string text, read_file(path));
  std::vector<JsonLine> lines;
  int number = 0;
  for (std::size_t start = 0; start < text.size();) {
    const std::size_t stop = std::min(text.find('\n', start), text.size());
    const std::string_view line = std::string_view(text).substr(start, stop - start);
    start = stop + 1;
    ++number;
    if (line.find_first_not_of(" \t\r") == std::string_view::npos) continue;
    auto object = nlohmann::json::parse(line, nullptr, /*allow_exceptions=*/false);
    if (!object.is_object()) {
      return fail("{}:{}: expected a JSON object", path.string(), number);
    }
    lines.push_back({number, std::move(object)});
    if (limit > 0 && static_cast<int>(lines.size()) == limit) break;
  }
  if (lines.empty()) return fail("{}: expected one JSON object a line, found none", path.string());
  return lines;
}

Result<std::string> string_field(const std::filesystem::path& path, const JsonLine& line,
                                 std::string_view field) {
  const auto value = line.object.find(field);
  if (value == line.object.end() || !value->is_string() ||
      value->get_ref<const std::string&>().empty()) {
    return fail("{}:{}: expected a string \"{}\" that is not empty", path.string(), line.number,
                field);
  }
  return value->get<std::string>();
}

}  // namespace kvq
