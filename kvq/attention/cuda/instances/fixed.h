// Pairs of widths with kernels of their own, one source file each.
#pragma once

#include "kvq/attention/cuda/kernels.h"

namespace kvq::cuda {

DecodeKernel k8v8_kernel(int head_blocks, int head_tiles);
DecodeKernel k8v4_kernel(int head_blocks, int head_tiles);
DecodeKernel k4v4_kernel(int head_blocks, int head_tiles);
DecodeKernel k4v2_kernel(int head_blocks, int head_tiles);
DecodeKernel k3v3_kernel(int head_blocks, int head_tiles);
DecodeKernel k3v2_kernel(int head_blocks, int head_tiles);
DecodeKernel k2v2_kernel(int head_blocks, int head_tiles);
DecodeKernel ternary_kernel(int head_blocks, int head_tiles);  // k1.58v1.58
DecodeKernel k1v1_kernel(int head_blocks, int head_tiles);

}  // namespace kvq::cuda
