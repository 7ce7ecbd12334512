// What commands print: tables and numbers for people, JSON for programs.
#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <cstdio>
#include <initializer_list>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "kvq/base/status.h"

namespace kvq {

// Whether write_file() can write there, asked before a long run.
Status check_writable(const std::string& path);

// --json FILE
struct JsonOption {
  std::string path;  // empty = none, "-" = stdout

  void add(CLI::App& app);
  // Where tables go: stderr if the JSON goes to stdout.
  std::FILE* tables() const { return path == "-" ? stderr : stdout; }
  // Fails where write() is bound to.
  Status check() const;
  Status write(const nlohmann::ordered_json& value) const;
};

// Rows of cells under a header; the first column is left-aligned, the others right-aligned.
class Table {
 public:
  explicit Table(std::vector<std::string> header) : rows_{std::move(header)} {}
  void add(std::vector<std::string> row) { rows_.push_back(std::move(row)); }
  void print(std::FILE* file) const;

 private:
  std::vector<std::vector<std::string>> rows_;
};

// "name   value" lines with the values in one column.
void print_fields(std::FILE* file,
                  std::initializer_list<std::pair<std::string, std::string>> fields);

std::string with_commas(std::int64_t number);  // 1,234,567
std::string with_commas(double number);        // rounded
std::string human_bytes(std::int64_t bytes);   // 768 B, 1.50 MiB
std::string human_count(std::int64_t count);   // 15.3 M

}  // namespace kvq
