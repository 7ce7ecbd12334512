// What the host hands to a prefill kernel, by value.
#pragma once

#include "kvq/attention/cuda/decode_params.h"

namespace kvq::cuda {

// Packed numbers are unpacked to numbers times 2^-kUnpackedPower, except those of 16 bits.
inline constexpr int kUnpackedPower = 3;

// The K or the V part of a page (codec/page_format.h).
struct PackedTensor {
  Bits bits;
  bool depth_wise;
  bool affine;
  bool plain;  // symmetric, a parameter for each token and 64 channels
  int log_group_rows;
  int log_group_depth;
  int steps;         // of 16 depths in a block: head_dim / 16 for K, 4 for V
  int block_steps;   // in all blocks together
  int row_groups;    // depth-wise: vectors of parameters in the page
  int depth_groups;  // row-wise: vectors of parameters in a block
  int block_bytes;
  int first;  // bytes of the page before this part
  int bytes;
  int scales;  // byte offsets in the part, whose codes come first
  int centers;
  float unit;  // of unpacked numbers: what they are to be multiplied with
};

struct ChunkLength {
  std::int32_t length;      // tokens of the sequence, the chunk included
  std::int32_t tail_first;  // position of the tail's row 0
};

struct PrefillParams {
  const void* query;  // [tokens, kv_heads, heads, head_dim]
  void* output;       // likewise
  NumberType query_type;
  NumberType output_type;
  const std::int32_t* query_starts;  // [sequences + 1]
  const ChunkLength* lengths;        // [sequences]

  const std::byte* pages;  // page `index` of kv head h: index * page_stride + h * head_stride
  const std::int32_t* page_table;  // [sequences, table_stride]
  std::int64_t page_stride;        // bytes
  std::int64_t head_stride;        // bytes
  std::int32_t table_stride;
  RowBlock sinks;
  RowBlock tail;
  const std::int32_t* row_blocks;  // [sequences, row_blocks_stride]; null: rows are contiguous
  std::int32_t row_blocks_stride;

  int sequences;
  int kv_heads;
  int heads;  // query heads of a kv head
  int head_dim;
  float score_scale;  // of the scores, in units of log2
  int sink_tokens;
  int window;
  bool exact_prefill;

  PackedTensor key;
  PackedTensor value;
  int key_rotation;    // length of the Hadamard transform of keys, 1 for none
  int value_rotation;  // likewise of values

  int slots;        // in shared memory, of keys and of values
  int raw_buffers;  // 1 or 2, of keys and of values
  int raw_bytes;    // of one, for keys or values
  int query_bytes;  // of shared memory, 0 if queries are in registers
};

}  // namespace kvq::cuda
