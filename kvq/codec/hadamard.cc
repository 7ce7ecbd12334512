#include "kvq/codec/hadamard.h"

#include "kvq/codec/fit.h"
#include "kvq/codec/spec.h"

namespace kvq {

void hadamard_rows(float* rows, int count, int head_dim, Isa isa) {
  fit_kernels(isa).hadamard(rows, count, head_dim, hadamard_block(head_dim));
}

}  // namespace kvq
