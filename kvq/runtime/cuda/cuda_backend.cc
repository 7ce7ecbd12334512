#include "kvq/runtime/backend.h"
#include "kvq/runtime/cuda/cuda_attention.h"
#include "kvq/runtime/cuda/cuda_ops.h"

namespace kvq {

Result<Backend> create_cuda_backend(const AttentionShape& shape, const EngineOptions& options,
                                    bool bfloat16, int max_rows) {
  KVQ_ASSIGN_OR_RETURN(const auto device, cuda::Device::open());
  const cuda::InputTerms terms = !bfloat16 ? cuda::InputTerms::kFloat32
                                 : options.precision == Precision::kFast ? cuda::InputTerms::kOne
                                                                         : cuda::InputTerms::kTwo;
  Backend backend;
  KVQ_ASSIGN_OR_RETURN(backend.ops, cuda::create_cuda_ops(device, terms));
  KVQ_ASSIGN_OR_RETURN(
      backend.attention,
      cuda::create_cuda_attention(device, shape,
                                  {.max_rows = max_rows, .exact_prefill = options.exact_prefill}));
  return backend;
}

}  // namespace kvq
