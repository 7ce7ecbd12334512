// JSON files, read with errors that name the file and the field.
#pragma once

#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "kvq/base/status.h"

namespace kvq {

using Json = nlohmann::json;

// `text` as JSON, an object at the top; `where` (a file, a part of one) opens the error.
Result<Json> parse_json_object(std::string_view text, std::string_view where);
Result<Json> read_json_object(const std::filesystem::path& path);

// "text" in quotes, on one line: control characters escaped, invalid UTF-8 replaced.
std::string in_quotes(std::string_view text);

// A value shortened for an error message.
std::string shown(const Json& value);

// The fields of one object. Absent and null are the same, as they are to transformers.
class JsonFields {
 public:
  // `object` must be an object and outlive this; `where` opens every error.
  JsonFields(const Json& object, std::string where) : object_(&object), where_(std::move(where)) {}

  bool has(std::string_view field) const { return find(field) != nullptr; }
  // nullptr where absent.
  const Json* find(std::string_view field) const;

  // 1 .. 2^31 - 1.
  Result<int> count(std::string_view field) const;
  Result<int> count(std::string_view field, int fallback) const;
  // Finite and above 0.
  Result<double> positive(std::string_view field) const;
  Result<double> positive(std::string_view field, double fallback) const;
  Result<bool> flag(std::string_view field, bool fallback) const;
  Result<std::string> text(std::string_view field) const;
  Result<std::string> text(std::string_view field, std::string_view fallback) const;
  // An object inside this one; its errors say "where: field.".
  Result<JsonFields> object(std::string_view field) const;
  // A list inside this one.
  Result<const Json*> list(std::string_view field) const;

  // "FILE: field: expected ..., found VALUE".
  tl::unexpected<Error> wrong(std::string_view field, std::string_view expected) const;
  const std::string& where() const { return where_; }

 private:
  const Json* object_;
  std::string where_;
};

}  // namespace kvq
