#include "kvq/attention/cuda/instances/fixed.h"

namespace kvq::cuda {

DecodeKernel fixed_decode_kernel(Bits key, Bits value, int head_blocks, int head_tiles) {
  struct Row {
    Bits key;
    Bits value;
    DecodeKernel (*kernel)(int head_blocks, int head_tiles);
  };
  constexpr Row kRows[] = {
      {Bits::k8, Bits::k8, k8v8_kernel}, {Bits::k8, Bits::k4, k8v4_kernel},
      {Bits::k4, Bits::k4, k4v4_kernel}, {Bits::k4, Bits::k2, k4v2_kernel},
      {Bits::k3, Bits::k3, k3v3_kernel}, {Bits::k3, Bits::k2, k3v2_kernel},
      {Bits::k2, Bits::k2, k2v2_kernel}, {Bits::kTernary, Bits::kTernary, ternary_kernel},
      {Bits::k1, Bits::k1, k1v1_kernel},
  };
  for (const Row& row : kRows) {
    if (row.key == key && row.value == value) return row.kernel(head_blocks, head_tiles);
  }
  return {};
}

}  // namespace kvq::cuda
