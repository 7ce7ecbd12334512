// What of a kernel's parameters follows from shape and format alone; no device is needed.
#pragma once

#include "kvq/attention/attention.h"
#include "kvq/attention/cuda/decode_params.h"
#include "kvq/base/status.h"
#include "kvq/codec/page_format.h"

namespace kvq::cuda {

// The kernels' padded sizes for a shape.
struct TileShape {
  int head_blocks;  // of 64 channels: 1, 2 or 4
  int columns;      // tiles of query heads in one pass: 1 or 2
};

TileShape tile_shape(const AttentionShape& shape);

// All but what run() fills in, what depends on the device and claimed_share.
Result<DecodeParams> layout_params(const AttentionShape& shape, const PageFormat& format);

// Warps that get work if all items are alike: a multiple of the items, or all.
int even_warps(int items, int warps, int warps_per_block);

// Both tensors have 16 bits or symmetric parameters for each token and 64 channels, and head_dim
// needs no padding.
bool is_symmetric_page(const PageFormat& format);
// Neither has groups of fewer than 32 rows (depth-wise) or depths (row-wise), and head_dim needs no
// padding.
bool is_grouped_page(const PageFormat& format);

}  // namespace kvq::cuda
