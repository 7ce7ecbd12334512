#include "kvq/base/json_file.h"

#include <cmath>
#include <cstdint>
#include <limits>

#include "kvq/base/file.h"

namespace kvq {
namespace {

constexpr std::size_t kShownLength = 80;
constexpr std::size_t kReasonLength = 160;

std::string shortened(std::string text, std::size_t length) {
  if (text.size() <= length) return text;
  // Cut between characters: continuation bytes are 10xxxxxx.
  while (length > 0 && (static_cast<unsigned char>(text[length]) & 0xC0U) == 0x80U) --length;
  return text.substr(0, length) + "...";
}

bool is_count(const Json& value) {
  if (value.is_number_unsigned()) {
    const auto number = value.get<std::uint64_t>();
    return number >= 1 && number <= std::numeric_limits<int>::max();
  }
  return false;
}

bool is_positive(const Json& value) {
  if (!value.is_number()) return false;
  const auto number = value.get<double>();
  return std::isfinite(number) && number > 0;
}

}  // namespace

Result<Json> parse_json_object(std::string_view text, std::string_view where) {
  try {
    Json value = Json::parse(text);
    if (value.is_object()) return value;
    return fail("{}: expected a JSON object, found {}", where, shown(value));
  } catch (const Json::exception& error) {
    return fail("{}: not valid JSON: {}", where, shortened(error.what(), kReasonLength));
  }
}

Result<Json> read_json_object(const std::filesystem::path& path) {
  KVQ_ASSIGN_OR_RETURN(const MappedFile file, MappedFile::open(path));
  const auto bytes = file.bytes();
  return parse_json_object({reinterpret_cast<const char*>(bytes.data()), bytes.size()},
                           path.string());
}

std::string in_quotes(std::string_view text) { return shown(Json(text)); }

std::string shown(const Json& value) {
  if (value.is_object()) return fmt::format("an object of {} fields", value.size());
  if (value.is_array() && value.size() > 16) return fmt::format("a list of {}", value.size());
  return shortened(value.dump(-1, ' ', false, Json::error_handler_t::replace), kShownLength);
}

const Json* JsonFields::find(std::string_view field) const {
  const auto found = object_->find(field);
  return found == object_->end() || found->is_null() ? nullptr : &*found;
}

tl::unexpected<Error> JsonFields::wrong(std::string_view field, std::string_view expected) const {
  const Json* value = find(field);
  return fail("{}: {}: expected {}, found {}", where_, field, expected,
              value == nullptr ? "nothing" : shown(*value));
}

Result<int> JsonFields::count(std::string_view field) const {
  const Json* value = find(field);
  if (value == nullptr || !is_count(*value)) return wrong(field, "a positive integer");
  return value->get<int>();
}

Result<int> JsonFields::count(std::string_view field, int fallback) const {
  return has(field) ? count(field) : fallback;
}

Result<double> JsonFields::positive(std::string_view field) const {
  const Json* value = find(field);
  if (value == nullptr || !is_positive(*value)) return wrong(field, "a positive number");
  return value->get<double>();
}

Result<double> JsonFields::positive(std::string_view field, double fallback) const {
  return has(field) ? positive(field) : fallback;
}

Result<bool> JsonFields::flag(std::string_view field, bool fallback) const {
  const Json* value = find(field);
  if (value == nullptr) return fallback;
  if (!value->is_boolean()) return wrong(field, "true or false");
  return value->get<bool>();
}

Result<std::string> JsonFields::text(std::string_view field) const {
  const Json* value = find(field);
  if (value == nullptr || !value->is_string()) return wrong(field, "a string");
  return value->get<std::string>();
}

Result<std::string> JsonFields::text(std::string_view field, std::string_view fallback) const {
  if (!has(field)) return std::string(fallback);
  return text(field);
}

Result<JsonFields> JsonFields::object(std::string_view field) const {
  const Json* value = find(field);
  if (value == nullptr || !value->is_object()) return wrong(field, "an object");
  return JsonFields(*value, fmt::format("{}: {}", where_, field));
}

Result<const Json*> JsonFields::list(std::string_view field) const {
  const Json* value = find(field);
  if (value == nullptr || !value->is_array()) return wrong(field, "a list");
  return value;
}

}  // namespace kvq
