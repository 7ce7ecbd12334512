// What every format of every tensor does to the model: the cost table of a sensitivity plan.
//
// 1. Attention error. One 16-bit pass a window captures queries, keys and values; every candidate
// is
//    then tried on its layer alone: mean squared error of the attention output. Good at ranking one
//    tensor's formats, blind to what a layer's error does further on.
// 2. Output error. KL divergence of the model's output when one tensor alone is packed: a pass over
//    the layers from that one on, for each format measured so.
//      attention   two formats a tensor, the others lie on the line through them in (log attention
//                  error, log KL): 4 * layers passes over half of the layers a window
//      output      every format that (1) leaves on the list, about ten a tensor
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "kvq/analysis/candidates.h"
#include "kvq/eval/windows.h"
#include "kvq/plan/cost_table.h"
#include "kvq/runtime/engine.h"

namespace kvq {

enum class SensitivityMode : std::uint8_t { kAttention, kOutput };

struct SensitivityOptions {
  SensitivityMode mode = SensitivityMode::kAttention;
  CandidateOptions candidates;
  int sinks = 4;
  int window = 64;
  Isa isa = Isa::kPortable;
};

// Costs in nats, mean over all positions of all windows. The same for the same windows.
Result<CostTable> measure_sensitivity(Engine& engine, std::span<const TokenWindow> windows,
                                      const SensitivityOptions& options,
                                      const std::shared_ptr<PagePool>& pool);

}  // namespace kvq
