#include "kvq/attention/cuda/device/instantiate.cuh"
#include "kvq/attention/cuda/instances/fixed.h"

namespace kvq::cuda {

DecodeKernel k3v2_kernel(int head_blocks, int head_tiles) {
  return instances<FixedPage<Bits::k3, Bits::k2>>(head_blocks, head_tiles);
}

}  // namespace kvq::cuda
