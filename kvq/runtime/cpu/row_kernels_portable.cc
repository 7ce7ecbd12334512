#include "kvq/runtime/cpu/row_kernels.inl"

namespace kvq {

const RowKernels kPortableRowKernels = kKernels;

}  // namespace kvq
