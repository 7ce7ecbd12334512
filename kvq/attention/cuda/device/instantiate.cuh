// One row of the table of kernels: all sizes of one kind of page.
#pragma once

#include "kvq/attention/cuda/device/decode_kernel.cuh"
#include "kvq/attention/cuda/kernels.h"

namespace kvq::cuda {

// Warps that the register file has room for: a warp of the larger kernels needs up to 255 registers
// a lane.
template <class Page, int kBlocks, int kColumns>
DecodeKernel instance() {
  constexpr bool kSmall = kBlocks * kColumns <= 2;
  constexpr int kMaxWarps = kSmall ? 12 : 8;
  return {reinterpret_cast<const void*>(&decode_kernel<Page, kBlocks, kColumns, kMaxWarps>),
          kMaxWarps, BlockResult<kBlocks, kColumns>::kBytes,
          Page::template kOperandBytes<4 * kBlocks, kColumns>};
}

template <class Page>
DecodeKernel instances(int head_blocks, int head_tiles) {
  if (head_blocks == 1 && head_tiles == 1) return instance<Page, 1, 1>();
  if (head_blocks == 1 && head_tiles == 2) return instance<Page, 1, 2>();
  if (head_blocks == 2 && head_tiles == 1) return instance<Page, 2, 1>();
  if (head_blocks == 2 && head_tiles == 2) return instance<Page, 2, 2>();
  if (head_blocks == 4 && head_tiles == 1) return instance<Page, 4, 1>();
  return {};
}

}  // namespace kvq::cuda
