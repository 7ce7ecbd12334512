#include "apps/kvq/help_format.h"

#include <fmt/format.h>

#include <string_view>

namespace kvq {
namespace {

constexpr std::size_t kTextColumn = 26;
constexpr std::size_t kColumns = 80;

// The words of `text` in lines that begin at kTextColumn; the cursor stands at `column`.
std::string wrapped(std::string_view text, std::size_t column) {
  std::string result;
  const auto new_line = [&] {
    result += "\n" + std::string(kTextColumn, ' ');
    column = kTextColumn;
  };
  if (column >= kTextColumn) new_line();
  result += std::string(kTextColumn - column, ' ');
  column = kTextColumn;
  while (!text.empty()) {
    const std::string_view word = text.substr(0, text.find(' '));
    if (column > kTextColumn && column + 1 + word.size() > kColumns) new_line();
    if (column > kTextColumn) {
      result += ' ';
      ++column;
    }
    result += word;
    column += word.size();
    text.remove_prefix(std::min(word.size() + 1, text.size()));
  }
  return result + "\n";
}

}  // namespace

std::string HelpFormat::make_option(const CLI::Option* option, bool is_positional) const {
  std::string name = "  " + option->get_name(is_positional, /*all_options=*/!is_positional);
  if (!is_positional && option->get_type_size() != 0) {
    // CLI11 appends what the checks accept, "N:INT in [1 - 1024]"; the errors say that.
    const std::string type = option->get_type_name();
    name += " " + type.substr(0, type.find(':'));
  }
  return name + wrapped(option->get_description(), name.size());
}

}  // namespace kvq
