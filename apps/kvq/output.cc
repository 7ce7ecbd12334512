#include "apps/kvq/output.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <filesystem>

#include "kvq/base/file.h"

namespace kvq {

Status check_writable(const std::string& path) {
  const std::filesystem::path file(path);
  const std::filesystem::path folder = file.has_parent_path() ? file.parent_path() : ".";
  std::error_code error;
  if (std::filesystem::is_directory(file, error)) return fail("{}: is a directory", path);
  if (!std::filesystem::is_directory(folder, error)) {
    return fail("{}: cannot write: there is no directory {}", path, folder.string());
  }
  if (::access(folder.c_str(), W_OK) != 0) {
    return fail("{}: cannot write: no permission to write to {}", path, folder.string());
  }
  return {};
}

void JsonOption::add(CLI::App& app) {
  app.add_option("--json", path,
                 "Also write the result as JSON; - writes it to stdout and the tables to stderr")
      ->type_name("FILE");
}

Status JsonOption::check() const {
  return path.empty() || path == "-" ? Status{} : check_writable(path);
}

Status JsonOption::write(const nlohmann::ordered_json& value) const {
  if (path.empty()) return {};
  const std::string text =
      value.dump(1, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n";
  if (path != "-") return write_file(path, text);
  if (std::fwrite(text.data(), 1, text.size(), stdout) != text.size() || std::fflush(stdout) != 0) {
    return fail("stdout: cannot write the JSON result");
  }
  return {};
}

void Table::print(std::FILE* file) const {
  std::vector<std::size_t> widths(rows_.front().size(), 0);
  for (const auto& row : rows_) {
    for (std::size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], row[i].size());
  }
  for (const auto& row : rows_) {
    std::string line = fmt::format("{:<{}}", row[0], widths[0]);
    for (std::size_t i = 1; i < row.size(); ++i) line += fmt::format("  {:>{}}", row[i], widths[i]);
    fmt::print(file, "{}\n", line);
  }
}

void print_fields(std::FILE* file,
                  std::initializer_list<std::pair<std::string, std::string>> fields) {
  std::size_t width = 0;
  for (const auto& [name, value] : fields) width = std::max(width, name.size());
  for (const auto& [name, value] : fields) fmt::print(file, "{:<{}}  {}\n", name, width, value);
}

std::string with_commas(std::int64_t number) {
  std::string digits = std::to_string(number < 0 ? -number : number);
  for (int place = static_cast<int>(digits.size()) - 3; place > 0; place -= 3) {
    digits.insert(static_cast<std::size_t>(place), ",");
  }
  return number < 0 ? "-" + digits : digits;
}

std::string with_commas(double number) {
  return with_commas(static_cast<std::int64_t>(std::llround(number)));
}

std::string human_bytes(std::int64_t bytes) {
  constexpr std::array kUnits = {"KiB", "MiB", "GiB", "TiB"};
  if (bytes < 1024) return fmt::format("{} B", bytes);
  double value = static_cast<double>(bytes) / 1024;
  std::size_t unit = 0;
  for (; value >= 1024 && unit + 1 < kUnits.size(); ++unit) value /= 1024;
  const int decimals = value < 10 ? 2 : value < 100 ? 1 : 0;
  return fmt::format("{:.{}f} {}", value, decimals, kUnits[unit]);
}

std::string human_count(std::int64_t count) {
  if (count < 10'000) return with_commas(count);
  const auto value = static_cast<double>(count);
  if (value < 1e6) return fmt::format("{:.1f} k", value / 1e3);
  if (value < 1e9) return fmt::format("{:.1f} M", value / 1e6);
  return fmt::format("{:.2f} B", value / 1e9);
}

}  // namespace kvq
