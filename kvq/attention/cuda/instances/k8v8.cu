#include "kvq/attention/cuda/instances/fixed.h"
#include "kvq/attention/cuda/device/instantiate.cuh"

namespace kvq::cuda {

DecodeKernel k8v8_kernel(int head_blocks, int head_tiles) {
  return instances<FixedPage<Bits::k8, Bits::k8>>(head_blocks, head_tiles);
}

}  // namespace kvq::cuda
