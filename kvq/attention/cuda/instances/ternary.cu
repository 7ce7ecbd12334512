#include "kvq/attention/cuda/device/instantiate.cuh"
#include "kvq/attention/cuda/instances/fixed.h"

namespace kvq::cuda {

DecodeKernel ternary_kernel(int head_blocks, int head_tiles) {
  return instances<FixedPage<Bits::kTernary, Bits::kTernary>>(head_blocks, head_tiles);
}

}  // namespace kvq::cuda
