// Codes and parameters to the bytes of a page and back (docs/page_format.md).
//
// Between fitting and layout, codes are "words": [blocks][depth / 4][64 rows] of 32 bits, byte i of
// a word = the code of depth 4T + i. Planes are shifts and masks of whole words.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kvq/base/half.h"
#include "kvq/codec/page_format.h"

namespace kvq {

// Most words and parameters of one tensor of a page, head_dim 256.
inline constexpr int kMaxTensorWords = kBlockRows * 256 / 4;
inline constexpr int kMaxParameters = kPageTokens * 256 / 16;

// words [depth / 4][64 rows] -> block, plane by plane; not for 16 bits.
void write_block(Bits bits, const std::uint32_t* words, int depth, std::byte* block);
void read_block(Bits bits, const std::byte* block, int depth, std::uint32_t* words);

// Numbers by group: that of row group r and depth group d is at r * row_stride + d * depth_stride.
struct ParameterGrid {
  const Half* values;
  int row_stride;
  int depth_stride;
};

// Groups along the rows that exist (V: channels below head_dim) and along the depth.
int row_group_count(const TensorFormat& format);
int depth_group_count(const TensorFormat& format);

// One scales or centers section, written whole (unused places are zero).
void write_parameters(const TensorFormat& format, const ParameterGrid& grid, std::byte* section);
// The same numbers, [row groups][depth groups].
void read_parameters(const TensorFormat& format, const std::byte* section, float* grid);

// The K or V part of a page, written whole. centers is ignored where the format has none.
void write_tensor(const TensorFormat& format, const std::uint32_t* words,
                  const ParameterGrid& scales, const ParameterGrid& centers, std::byte* page);

}  // namespace kvq
