#include "kvq/runtime/cpu/row_kernels.inl"

namespace kvq {

const RowKernels kAvx512RowKernels = kKernels;

}  // namespace kvq
