#include "kvq/model/safetensors.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <limits>
#include <tuple>

#include "kvq/base/json_file.h"

namespace kvq {
namespace {

// The official implementation's limit.
constexpr std::uint64_t kMaxHeaderBytes = 100'000'000;
constexpr std::size_t kLengthBytes = 8;

struct TypeInfo {
  std::string_view type_name;
  int bits;
  std::optional<DataType> type;
};

constexpr std::array kTypes = {
    TypeInfo{"F32", 32, DataType::kFloat32},
    TypeInfo{"F16", 16, DataType::kFloat16},
    TypeInfo{"BF16", 16, DataType::kBFloat16},
    TypeInfo{"BOOL", 8, {}},
    TypeInfo{"U8", 8, {}},
    TypeInfo{"I8", 8, {}},
    TypeInfo{"F8_E5M2", 8, {}},
    TypeInfo{"F8_E4M3", 8, {}},
    TypeInfo{"F8_E8M0", 8, {}},
    TypeInfo{"F6_E2M3", 6, {}},
    TypeInfo{"F6_E3M2", 6, {}},
    TypeInfo{"F4", 4, {}},
    TypeInfo{"I16", 16, {}},
    TypeInfo{"U16", 16, {}},
    TypeInfo{"I32", 32, {}},
    TypeInfo{"U32", 32, {}},
    TypeInfo{"I64", 64, {}},
    TypeInfo{"U64", 64, {}},
    TypeInfo{"F64", 64, {}},
    TypeInfo{"C64", 64, {}},
};

// Bytes of a tensor; nothing where the number overflows or is not whole.
std::optional<std::uint64_t> bytes_of_shape(const std::vector<std::int64_t>& shape, int bits) {
  std::uint64_t total = 1;
  for (const std::int64_t extent : shape) {
    if (__builtin_mul_overflow(total, static_cast<std::uint64_t>(extent), &total)) return {};
  }
  if (__builtin_mul_overflow(total, static_cast<std::uint64_t>(bits), &total)) return {};
  if (total % 8 != 0) return {};
  return total / 8;
}

Result<std::vector<std::int64_t>> read_shape(const JsonFields& fields) {
  KVQ_ASSIGN_OR_RETURN(const Json* list, fields.list("shape"));
  std::vector<std::int64_t> shape;
  for (const Json& extent : *list) {
    if (!extent.is_number_unsigned() ||
        extent.get<std::uint64_t>() > std::numeric_limits<std::int64_t>::max()) {
      return fields.wrong("shape", "a list of integers from 0 on");
    }
    shape.push_back(extent.get<std::int64_t>());
  }
  return shape;
}

Status read_offsets(const JsonFields& fields, std::uint64_t data_bytes, SafetensorsEntry& entry) {
  KVQ_ASSIGN_OR_RETURN(const Json* list, fields.list("data_offsets"));
  if (list->size() != 2 || !(*list)[0].is_number_unsigned() || !(*list)[1].is_number_unsigned()) {
    return fields.wrong("data_offsets", "two integers from 0 on");
  }
  entry.begin = (*list)[0].get<std::uint64_t>();
  entry.end = (*list)[1].get<std::uint64_t>();
  if (entry.begin > entry.end) return fields.wrong("data_offsets", "begin <= end");
  if (entry.end > data_bytes) {
    return fields.wrong("data_offsets", fmt::format("an end within {} bytes of data", data_bytes));
  }
  return {};
}

Result<SafetensorsEntry> read_entry(const std::string& tensor_name, const Json& value,
                                    std::uint64_t data_bytes, std::string_view where) {
  const std::string place = fmt::format("{}: tensor {}", where, in_quotes(tensor_name));
  if (!value.is_object()) return fail("{}: expected an object, found {}", place, shown(value));
  const JsonFields fields(value, place);
  SafetensorsEntry entry;
  entry.tensor_name = tensor_name;
  KVQ_ASSIGN_OR_RETURN(entry.type_name, fields.text("dtype"));
  KVQ_ASSIGN_OR_RETURN(entry.shape, read_shape(fields));
  KVQ_RETURN_IF_ERROR(read_offsets(fields, data_bytes, entry));

  const auto* info = std::ranges::find(kTypes, entry.type_name, &TypeInfo::type_name);
  if (info == kTypes.end()) return entry;
  entry.type = info->type;
  const auto bytes = bytes_of_shape(entry.shape, info->bits);
  if (!bytes) return fields.wrong("shape", "a whole number of bytes below 2^61");
  if (*bytes != entry.end - entry.begin) {
    return fail("{}: {} of shape {} takes {} bytes, its data_offsets [{}, {}] hold {}", place,
                entry.type_name, shown(Json(entry.shape)), *bytes, entry.begin, entry.end,
                entry.end - entry.begin);
  }
  return entry;
}

Status check_metadata(const Json& metadata, std::string_view where) {
  const bool good = metadata.is_object() && std::ranges::all_of(metadata, [](const Json& text) {
                      return text.is_string();
                    });
  if (good) return {};
  return fail("{}: __metadata__: expected an object of strings, found {}", where, shown(metadata));
}

// `entries` by offset: each begins where the one before ends, and the last ends the data.
Status check_coverage(const std::vector<SafetensorsEntry>& entries, std::uint64_t data_bytes,
                      std::string_view where) {
  std::uint64_t covered = 0;
  for (const SafetensorsEntry& entry : entries) {
    if (entry.begin != covered) {
      return fail("{}: tensor {}: expected to begin at offset {}, found {}: {}", where,
                  in_quotes(entry.tensor_name), covered, entry.begin,
                  entry.begin < covered ? "it overlaps another tensor"
                                        : "bytes before it belong to no tensor");
    }
    covered = entry.end;
  }
  if (covered == data_bytes) return {};
  return fail("{}: tensors cover {} bytes of data, the file holds {}", where, covered, data_bytes);
}

Result<std::string_view> header_text(std::span<const std::byte> file, std::string_view where) {
  static_assert(std::endian::native == std::endian::little);
  if (file.size() < kLengthBytes) {
    return fail("{}: not a safetensors file: expected at least {} bytes, found {}", where,
                kLengthBytes, file.size());
  }
  std::uint64_t length = 0;
  std::memcpy(&length, file.data(), kLengthBytes);
  const std::uint64_t limit = std::min<std::uint64_t>(kMaxHeaderBytes, file.size() - kLengthBytes);
  if (length > limit) {
    return fail("{}: header length: expected at most {} (a file of {} bytes), found {}", where,
                limit, file.size(), length);
  }
  return std::string_view(reinterpret_cast<const char*>(file.data()) + kLengthBytes, length);
}

}  // namespace

Result<SafetensorsHeader> parse_safetensors(std::span<const std::byte> file,
                                            std::string_view where) {
  KVQ_ASSIGN_OR_RETURN(const std::string_view text, header_text(file, where));
  KVQ_ASSIGN_OR_RETURN(const Json json, parse_json_object(text, fmt::format("{}: header", where)));
  SafetensorsHeader header;
  header.data_begin = kLengthBytes + text.size();
  const std::uint64_t data_bytes = file.size() - header.data_begin;
  for (const auto& [tensor_name, value] : json.items()) {
    if (tensor_name == "__metadata__") {
      KVQ_RETURN_IF_ERROR(check_metadata(value, where));
      continue;
    }
    KVQ_ASSIGN_OR_RETURN(SafetensorsEntry entry, read_entry(tensor_name, value, data_bytes, where));
    header.entries.push_back(std::move(entry));
  }
  std::ranges::sort(header.entries, {}, [](const SafetensorsEntry& entry) {
    return std::tuple(entry.begin, entry.end);
  });
  KVQ_RETURN_IF_ERROR(check_coverage(header.entries, data_bytes, where));
  return header;
}

}  // namespace kvq
