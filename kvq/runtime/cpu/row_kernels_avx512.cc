#include "kvq/runtime/cpu/row_kernels_body.h"

namespace kvq {

const RowKernels kAvx512RowKernels = kKernels;

}  // namespace kvq
