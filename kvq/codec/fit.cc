#include "kvq/codec/fit.h"

#include "kvq/base/cpu.h"

namespace kvq {

extern const FitKernels kFitPortable;
#if defined(__x86_64__)
extern const FitKernels kFitAvx2;
extern const FitKernels kFitAvx512;
#endif

const FitKernels& fit_kernels(Isa isa) {
#if defined(__x86_64__)
  if (isa == Isa::kAvx512) return kFitAvx512;
  if (isa == Isa::kAvx2) return kFitAvx2;
#endif
  return kFitPortable;
}

}  // namespace kvq
