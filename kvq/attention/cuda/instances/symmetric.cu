#include "kvq/attention/cuda/device/instantiate.cuh"

namespace kvq::cuda {

DecodeKernel symmetric_decode_kernel(int head_blocks, int head_tiles) {
  return instances<SymmetricPage>(head_blocks, head_tiles);
}

}  // namespace kvq::cuda
