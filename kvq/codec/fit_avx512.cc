#define KVQ_LANES 16
#include "kvq/codec/fit_kernel.inl"

namespace kvq {

extern const FitKernels kFitAvx512;
const FitKernels kFitAvx512{fit, hadamard, transpose};

}  // namespace kvq
