#include "kvq/runtime/cpu/row_kernels.inl"

namespace kvq {

const RowKernels kAvx2RowKernels = kKernels;

}  // namespace kvq
