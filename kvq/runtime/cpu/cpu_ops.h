// The forward pass's operations on a CPU.
#pragma once

#include <memory>

#include "kvq/base/cpu.h"
#include "kvq/base/thread_pool.h"
#include "kvq/runtime/ops.h"

namespace kvq {

// Device memory is the process's own. `bfloat16` weights need a machine that multiplies them
// (multiplies_bfloat16()): an error otherwise. `isa` is that of the small operations; oneDNN picks
// its own for the matrix products. `threads` outlives the result.
Result<std::unique_ptr<Ops>> create_cpu_ops(bool bfloat16, Isa isa, ThreadPool& threads);

// Whether oneDNN multiplies bf16 with instructions made for it on this machine.
bool multiplies_bfloat16();

}  // namespace kvq
