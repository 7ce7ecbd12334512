// What the host hands to a decode kernel, by value.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kvq/base/cuda/number_type.h"
#include "kvq/codec/bits.h"

namespace kvq::cuda {

// Query heads of one kv head are processed in tiles of 8, the width of the matrix instruction.
inline constexpr int kHeadTile = 8;
// Exact rows of one unit of work, the depth of one matrix instruction. A page is a unit, too.
inline constexpr int kExactUnitRows = 16;
// Keys and values.
constexpr int exact_unit_bytes(int head_dim) { return 2 * kExactUnitRows * 2 * head_dim; }

// Shared memory before the warps' regions.
inline constexpr int kSharedHeader = 1792;

// The K or the V part of a page (codec/page_format.h).
struct TensorLayout {
  Bits bits;
  bool depth_wise;
  bool affine;
  int group_rows;
  int group_depth;
  int row_shift;               // row >> row_shift is the row group
  int depth_shift;             // likewise
  int steps;                   // of 16 depths in a block: head_dim / 16 for K, 4 for V
  int row_groups;              // depth-wise: vectors of parameters in the page
  int depth_groups;            // row-wise: vectors of parameters in a block
  float middle;                // code that stands for the center
  std::uint32_t minus_middle;  // two fp16 numbers
  int block_bytes;
  int planes;  // byte offsets in the page
  int scales;
  int centers;
};

// Tokens of one sequence, by where they are read from.
struct SequenceLength {
  std::int32_t pages;  // packed pages of 64 tokens
  std::int32_t sinks;  // exact rows
  std::int32_t tail;   // exact rows
};

// fp16 rows: row i of kv head h of sequence s starts at s * sequence_stride + h * head_stride +
// i * head_dim elements.
struct RowBlock {
  const std::uint16_t* key;
  const std::uint16_t* value;
  std::int64_t sequence_stride;
  std::int64_t head_stride;
};

// Query heads of one pass over a kv head's pages, at most.
inline constexpr int kMaxPassHeads = 16;

// Exact rows in blocks, wherever each lies: for each sequence the number of its sink block, the
// page whose tokens the first of its row blocks holds, and the numbers of the row blocks, 64 tokens
// each. Block b starts at b * sequence_stride of the sinks or the tail.
inline constexpr int kRowBlocksHeader = 2;

// Progress of one item (a sequence's kv head), alone in its 128-byte line: atomics on one line
// serialize. All numbers are zero between launches.
struct alignas(128) ItemCounter {
  std::uint32_t claims;                   // pages handed out beyond the fixed ones
  std::uint32_t arrivals[kMaxPassHeads];  // partial results that are in memory, for each head
};

// For divisions without a division (device/work.cuh).
struct Divisor {
  int number;
  float inverse;
};

struct DecodeParams {
  const void* query;  // [sequences, kv_heads, heads, head_dim]
  void* output;       // likewise
  NumberType query_type;
  NumberType output_type;

  const std::byte* pages;  // page `index` of kv head h: index * page_stride + h * head_stride
  const std::int32_t* page_table;  // [sequences, table_stride]
  std::int64_t page_stride;        // bytes
  std::int64_t head_stride;        // bytes
  std::int32_t table_stride;
  bool pages_settled;             // no kernel that may still run writes any
  const SequenceLength* lengths;  // [sequences]
  RowBlock sinks;
  RowBlock tail;
  const std::int32_t* row_blocks;  // [tables, row_blocks_stride]; null: rows are contiguous
  std::int32_t row_blocks_stride;
  const std::int32_t* tables;  // [sequences], which rows of both tables; null: their own

  int sequences;
  int kv_heads;
  int heads;       // query heads of a kv head
  int head_tiles;  // passes over a kv head's pages, each for a part of its query heads
  int head_dim;
  float score_scale;  // of the scores, in units of log2

  TensorLayout key;
  TensorLayout value;
  int page_bytes;
  int key_rotation;    // length of the Hadamard transform of keys, 1 for none
  int value_rotation;  // likewise of values
  int claimed_share;   // of a long item's pages, in 1/1024: claimed one by one at the end

  Divisor warps;       // of all blocks
  Divisor even_warps;  // that get work if all items are alike

  int stages;             // units in shared memory for each warp: 1 or 2
  int stage_bytes;        // of the largest unit
  int region_bytes;       // shared memory of one warp
  ItemCounter* counters;  // [sequences * kv_heads * head_tiles]
  float* partials;        // [2 * warps][partial_floats]
  int partial_floats;
};

}  // namespace kvq::cuda
