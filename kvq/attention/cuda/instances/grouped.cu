#include "kvq/attention/cuda/device/instantiate.cuh"

namespace kvq::cuda {
namespace {

template <bool kKeyDepthWise, bool kValueDepthWise>
DecodeKernel sizes(int head_blocks) {
  using Page = GroupedPage<kKeyDepthWise, kValueDepthWise>;
  return head_blocks == 1 ? instance<Page, 1, 1>() : instance<Page, 2, 1>();
}

}  // namespace

DecodeKernel grouped_decode_kernel(bool key_depth_wise, bool value_depth_wise, int head_blocks,
                                   int head_tiles) {
  if (head_blocks > 2 || head_tiles > 1) return {};
  if (key_depth_wise) {
    return value_depth_wise ? sizes<true, true>(head_blocks) : sizes<true, false>(head_blocks);
  }
  return value_depth_wise ? sizes<false, true>(head_blocks) : sizes<false, false>(head_blocks);
}

}  // namespace kvq::cuda
