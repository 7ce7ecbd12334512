#include <algorithm>
#include <array>
#include <cstring>

#include "kvq/codec/hadamard.h"
#include "kvq/codec/pack.h"
#include "kvq/codec/page_layout.h"

namespace kvq {
namespace {

Half half_at(const std::byte* section, int index) {
  Half value;
  std::memcpy(&value, section + 2 * index, sizeof value);
  return value;
}

void unpack_unquantized(const TensorFormat& format, const std::byte* page, float* rows) {
  const std::byte* numbers = page + format.planes_offset;
  for (int token = 0; token < kPageTokens; ++token) {
    for (int channel = 0; channel < format.head_dim; ++channel) {
      const int index = format.is_key ? channel * kBlockRows + token
                                      : (channel / kBlockRows * kPageTokens + token) * kBlockRows +
                                            channel % kBlockRows;
      rows[token * format.head_dim + channel] = to_float(half_at(numbers, index));
    }
  }
}

// Calls body(row of the tensor, depth, code) for every code that exists.
template <typename Body>
void for_each_code(const TensorFormat& format, const std::byte* page, Body body) {
  std::array<std::uint32_t, kMaxTensorWords> words;
  const int all_rows = format.is_key ? kPageTokens : format.head_dim;
  for (int block = 0; block < format.blocks; ++block) {
    const int first_row = block * kBlockRows;
    const int rows = std::min(kBlockRows, all_rows - first_row);
    read_block(format.spec.bits, page + format.planes_offset + block * format.block_bytes,
               format.depth, words.data());
    for (int row = 0; row < rows; ++row) {
      for (int depth = 0; depth < format.depth; depth += 4) {
        const std::uint32_t word = words[depth / 4 * kBlockRows + row];
        for (int i = 0; i < 4; ++i) body(first_row + row, depth + i, (word >> (8 * i)) & 0xffU);
      }
    }
  }
}

void unpack_tensor(const TensorFormat& format, const std::byte* page, float* rows) {
  if (format.spec.bits == Bits::k16) return unpack_unquantized(format, page, rows);
  const int head_dim = format.head_dim;
  const int depth_groups = depth_group_count(format);
  std::array<float, kMaxParameters> scales;
  std::array<float, kMaxParameters> centers{};
  read_parameters(format, page + format.scales_offset, scales.data());
  if (format.has_centers()) read_parameters(format, page + format.centers_offset, centers.data());
  std::array<int, 256> row_group;
  std::array<int, 256> depth_group;
  for (int i = 0; i < 256; ++i) {
    row_group[i] = i / format.group_rows * depth_groups;
    depth_group[i] = i / format.group_depth;
  }
  const float mid = middle(format.spec.bits);
  const int row_stride = format.is_key ? head_dim : 1;
  const int depth_stride = format.is_key ? 1 : head_dim;
  for_each_code(format, page, [&](int row, int depth, std::uint32_t code) {
    const int group = row_group[row] + depth_group[depth];
    rows[row * row_stride + depth * depth_stride] =
        scales[group] * (static_cast<float>(code) - mid) + centers[group];
  });
  if (format.spec.rotation == Rotation::kHadamard) {
    hadamard_rows(rows, kPageTokens, head_dim, host_isa());
  }
}

}  // namespace

void unpack_codes(const TensorFormat& format, const std::byte* page, std::uint8_t* codes) {
  const int row_stride = format.is_key ? format.head_dim : 1;
  const int depth_stride = format.is_key ? 1 : format.head_dim;
  for_each_code(format, page, [&](int row, int depth, std::uint32_t code) {
    codes[row * row_stride + depth * depth_stride] = static_cast<std::uint8_t>(code);
  });
}

void unpack_page(const PageFormat& format, const std::byte* page, float* key, float* value) {
  if (key != nullptr) unpack_tensor(format.key, page, key);
  if (value != nullptr) unpack_tensor(format.value, page, value);
}

}  // namespace kvq
