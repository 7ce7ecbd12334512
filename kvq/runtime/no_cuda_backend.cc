#include "kvq/runtime/backend.h"

namespace kvq {

Result<Backend> create_cuda_backend(const AttentionShape& /*shape*/,
                                    const EngineOptions& /*options*/, bool /*bfloat16*/,
                                    int /*max_rows*/) {
  return fail("--device cuda: this build has no CUDA support");
}

}  // namespace kvq
