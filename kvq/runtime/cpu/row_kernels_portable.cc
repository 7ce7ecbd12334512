#include "kvq/runtime/cpu/row_kernels_body.h"

namespace kvq {

const RowKernels kPortableRowKernels = kKernels;

}  // namespace kvq
