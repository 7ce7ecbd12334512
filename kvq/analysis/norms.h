// Norms of the projections that make keys and values, streamed from a checkpoint's files.
#pragma once

#include <cstdint>

#include "kvq/base/status.h"
#include "kvq/base/thread_pool.h"
#include "kvq/model/checkpoint.h"
#include "kvq/model/config.h"
#include "kvq/plan/norm_table.h"

namespace kvq {

enum class Norm : std::uint8_t {
  kFrobenius,  // root of the sum of squares
  kSpectral,   // largest singular value
};

// Of every layer's key and value projection, whole and by kv head. Reads those tensors only. A
// weight that is not finite and a tensor of zeros are errors that name the tensor.
Result<NormTable> measure_norms(const ModelConfig& config, const Checkpoint& checkpoint, Norm norm,
                                ThreadPool& threads);

}  // namespace kvq
