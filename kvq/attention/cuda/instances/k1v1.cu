#include "kvq/attention/cuda/device/instantiate.cuh"
#include "kvq/attention/cuda/instances/fixed.h"

namespace kvq::cuda {

DecodeKernel k1v1_kernel(int head_blocks, int head_tiles) {
  return instances<FixedPage<Bits::k1, Bits::k1>>(head_blocks, head_tiles);
}

}  // namespace kvq::cuda
