// The header of one safetensors file:
//
//   | 8 bytes: header length N, little-endian | N bytes: JSON | data |
//
// The JSON maps a tensor's name to {"dtype", "shape", "data_offsets": [begin, end]}, offsets
// counted from the start of the data; "__metadata__" maps strings to strings.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kvq/base/status.h"
#include "kvq/model/checkpoint.h"

namespace kvq {

struct SafetensorsEntry {
  std::string tensor_name;
  std::string type_name;         // as written
  std::optional<DataType> type;  // empty: a type that is not read
  std::vector<std::int64_t> shape;
  std::uint64_t begin = 0;  // bytes from the start of the data
  std::uint64_t end = 0;
};

struct SafetensorsHeader {
  std::vector<SafetensorsEntry> entries;  // by offset
  std::size_t data_begin = 0;             // bytes from the start of the file
};

// `file`: the whole file. Accepts what the official implementation accepts: the tensors cover the
// data exactly, without holes or overlaps, and each covers type x shape bytes (unknown types: any
// number of bytes). `where` opens the error.
Result<SafetensorsHeader> parse_safetensors(std::span<const std::byte> file,
                                            std::string_view where);

}  // namespace kvq
