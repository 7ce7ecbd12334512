#include "kvq/runtime/cpu/row_kernels.h"

namespace kvq {

const RowKernels& row_kernels(Isa isa) {
#if defined(__x86_64__)
  switch (isa) {
    case Isa::kPortable:
      return kPortableRowKernels;
    case Isa::kAvx2:
      return kAvx2RowKernels;
    case Isa::kAvx512:
      return kAvx512RowKernels;
  }
#endif
  return kPortableRowKernels;
}

}  // namespace kvq
