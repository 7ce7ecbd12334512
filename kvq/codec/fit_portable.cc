#define KVQ_LANES 4
#include "kvq/codec/fit_kernel.inl"

namespace kvq {

extern const FitKernels kFitPortable;
const FitKernels kFitPortable{fit, hadamard, transpose};

}  // namespace kvq
