// Writes the rows of a pass into the exact rows of their sequences' caches, as fp16.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "kvq/base/cuda/number_type.h"

namespace kvq::cuda {

// Where a row goes: token `row` of a row block, or token -1 - row of a sink block.
struct RowPlace {
  std::int32_t block;  // number of the block
  std::int32_t row;
};

// A number that is not finite in fp16; the least one of a pass is kept. No such number: all ones.
//   | layer 12 | row of the pass 20 | value 1 | kv head 12 | channel 8 | kind 3 |
using BadNumber = unsigned long long;
inline constexpr BadNumber kNoBadNumber = ~0ULL;

// Where a row's numbers lie, in numbers from the start, multiples of 4.
struct RowStrides {
  std::int64_t sequence;
  std::int64_t token;
  std::int64_t head;
};

// Pointers are to device memory. Row r of the pass is token r % tokens of sequence r / tokens; its
// heads are `strides` apart, the head_dim numbers of each side by side and aligned to four.
struct AppendRows {
  const void* key;
  const void* value;
  NumberType type;
  RowStrides key_strides;
  RowStrides value_strides;
  int tokens;
  const RowPlace* places;   // [rows]
  std::byte* base;          // block b starts at base + b * kBlockUnit
  BadNumber* bad;           // in and out
  std::int64_t row_offset;  // of the layer in a row block, bytes
  std::int64_t sink_offset;
  int rows;
  int kv_heads;
  int head_dim;
  int sinks;  // tokens of a sink block
  int layer;
};

cudaError_t append_rows(const AppendRows& batch, cudaStream_t stream);

}  // namespace kvq::cuda
