#include "kvq/attention/cuda/device/instantiate.cuh"
#include "kvq/attention/cuda/instances/fixed.h"

namespace kvq::cuda {

DecodeKernel k8v8_kernel(int head_blocks, int head_tiles) {
  return instances<FixedPage<Bits::k8, Bits::k8>>(head_blocks, head_tiles);
}

}  // namespace kvq::cuda
