// What the host hands to the dequantizing kernel, by value.
#pragma once

#include "kvq/attention/cuda/decode_params.h"

namespace kvq::cuda {

// [sequences, kv_heads, tokens, head_dim], strides in numbers; of a head's numbers they are 1.
struct PlainRows {
  void* key = nullptr;
  void* value = nullptr;
  NumberType type = NumberType::kFloat32;
  std::int64_t sequence_stride = 0;
  std::int64_t head_stride = 0;
  std::int64_t token_stride = 0;
};

// The K or the V part of a page (codec/page_format.h).
struct StoredTensor {
  Bits bits;
  bool affine;
  int low_width;  // of the planes, in bits; 0 for ternary and 16 bits
  int high_width;
  int rows;
  int depth;
  int block_bytes;
  int planes;  // byte offsets in the page
  int scales;
  int centers;
  int rotation;  // length of the Hadamard transform, 1 for none
  float rotation_scale;
  float middle;  // code that stands for the center
  // Index of a parameter in its section: row_offset[row] + depth_offset[depth].
  std::uint16_t row_offset[256];
  std::uint16_t depth_offset[256];
};

struct DequantizeParams {
  StoredTensor tensors[2];  // K, V
  int kv_heads;
  int head_dim;

  const std::byte* pages;  // as in DecodeParams
  const std::int32_t* page_table;
  std::int64_t page_stride;
  std::int64_t head_stride;
  std::int32_t table_stride;
  const SequenceLength* lengths;
  RowBlock sinks;
  RowBlock tail;
  const std::int32_t* row_blocks;
  std::int32_t row_blocks_stride;
  PlainRows rows;
};

// The kernel that was compiled, to be launched by address. Blocks (unit of 64 tokens, sequence * kv
// heads, K or V) of kDequantizeThreads; shared memory: [64 tokens][head_dim] floats.
inline constexpr int kDequantizeThreads = 256;
const void* dequantize_kernel();

}  // namespace kvq::cuda
