#define KVQ_LANES 8
#include "kvq/codec/fit_kernel.inl"

namespace kvq {

extern const FitKernels kFitAvx2;
const FitKernels kFitAvx2{fit, hadamard, transpose};

}  // namespace kvq
