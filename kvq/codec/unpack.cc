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

void unpack_tensor(const TensorFormat& format, const std::byte* page, float* rows) {
  if (format.spec.bits == Bits::k16) return unpack_unquantized(format, page, rows);
  const int head_dim = format.head_dim;
  std::array<std::uint8_t, static_cast<std::size_t>(kPageTokens) * 256> codes;
  unpack_codes(format, page, codes.data());
  const float mid = middle(format.spec.bits);
  for (int token = 0; token < kPageTokens; ++token) {
    for (int channel = 0; channel < head_dim; ++channel) {
      const int group = parameter_index(format, token, channel);
      const float scale = to_float(half_at(page + format.scales_offset, group));
      const int at = token * head_dim + channel;
      rows[at] = scale * (static_cast<float>(codes[at]) - mid);
      if (format.has_centers()) rows[at] += to_float(half_at(page + format.centers_offset, group));
    }
  }
  if (format.spec.rotation == Rotation::kHadamard) {
    hadamard_rows(rows, kPageTokens, head_dim, host_isa());
  }
}

}  // namespace

void unpack_codes(const TensorFormat& format, const std::byte* page, std::uint8_t* codes) {
  std::array<std::uint32_t, kMaxTensorWords> words;
  for (int block = 0; block < format.blocks; ++block) {
    read_block(format.spec.bits, page + format.planes_offset + block * format.block_bytes,
               format.depth, words.data());
    for (int quad = 0; quad < format.depth / 4; ++quad) {
      for (int row = 0; row < kBlockRows; ++row) {
        const std::uint32_t word = words[quad * kBlockRows + row];
        for (int i = 0; i < 4; ++i) {
          const int depth = 4 * quad + i;
          const int token = format.is_key ? row : depth;
          const int channel = format.is_key ? depth : block * kBlockRows + row;
          if (channel >= format.head_dim) continue;
          codes[token * format.head_dim + channel] = static_cast<std::uint8_t>(word >> (8 * i));
        }
      }
    }
  }
}

void unpack_page(const PageFormat& format, const std::byte* page, float* key, float* value) {
  if (key != nullptr) unpack_tensor(format.key, page, key);
  if (value != nullptr) unpack_tensor(format.value, page, value);
}

}  // namespace kvq
