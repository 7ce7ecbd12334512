#include "kvq/runtime/cpu/row_kernels_body.h"

namespace kvq {

const RowKernels kAvx2RowKernels = kKernels;

}  // namespace kvq
