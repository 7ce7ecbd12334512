// The orthonormal Walsh-Hadamard transform of rows, in place; it is its own inverse.
#pragma once

#include "kvq/base/cpu.h"

namespace kvq {

// Transforms each row of `rows` [count, head_dim] in blocks of hadamard_block(head_dim).
// The order of additions is fixed (butterflies of stride 1, 2, 4, ..., then one multiplication by
// 1/sqrt(block)), so every instruction set gives the same bits.
void hadamard_rows(float* rows, int count, int head_dim, Isa isa);

}  // namespace kvq
