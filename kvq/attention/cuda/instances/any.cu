#include "kvq/attention/cuda/device/instantiate.cuh"

namespace kvq::cuda {

DecodeKernel any_decode_kernel(int head_blocks, int head_tiles) {
  return instances<AnyPage>(head_blocks, head_tiles);
}

}  // namespace kvq::cuda
