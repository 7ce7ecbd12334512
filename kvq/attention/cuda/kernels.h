// The kernels that were compiled, to be launched by address.
#pragma once

#include <cstddef>

#include "kvq/codec/bits.h"

namespace kvq::cuda {

struct DecodeKernel {
  const void* function = nullptr;  // null: there is none
  int max_warps = 0;               // of a block
  std::size_t result_bytes = 0;    // shared memory of a warp's result
  std::size_t operand_bytes = 0;   // behind a warp's stages
};

// head_blocks: 64 channels each, 1, 2 or 4. head_tiles: 8 query heads each, 1 or 2 (1 for 4
// blocks).

// Symmetric parameters, a scale for each token and 64 channels, head_dim = 64 * head_blocks.
DecodeKernel fixed_decode_kernel(Bits key, Bits value, int head_blocks, int head_tiles);
// The same for any widths, head_dim = 64 * head_blocks.
DecodeKernel symmetric_decode_kernel(int head_blocks, int head_tiles);
// Groups of 32 and more, symmetric or affine, any widths, head_dim = 64 * head_blocks. depth_wise:
// the parameters' order (codec/page_format.h). None for more than 8 query heads or 128 channels.
DecodeKernel grouped_decode_kernel(bool key_depth_wise, bool value_depth_wise, int head_blocks,
                                   int head_tiles);
// Everything.
DecodeKernel any_decode_kernel(int head_blocks, int head_tiles);

struct PrefillKernel {
  const void* function;
  int threads;      // of a block
  int tile_rows;    // query rows of a block
  int slot_bytes;   // shared memory of the keys or the values of 64 positions
  int query_bytes;  // shared memory of the query rows
};

PrefillKernel prefill_kernel_of(int head_blocks);

}  // namespace kvq::cuda
