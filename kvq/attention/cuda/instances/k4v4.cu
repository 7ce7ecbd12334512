#include "kvq/attention/cuda/device/instantiate.cuh"
#include "kvq/attention/cuda/instances/fixed.h"

namespace kvq::cuda {

DecodeKernel k4v4_kernel(int head_blocks, int head_tiles) {
  return instances<FixedPage<Bits::k4, Bits::k4>>(head_blocks, head_tiles);
}

}  // namespace kvq::cuda
