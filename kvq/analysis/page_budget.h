// Bytes for packed pages, from what people ask for.
#pragma once

#include <cstdint>

#include "kvq/base/status.h"
#include "kvq/plan/plan.h"

namespace kvq {

// What a plan has to fit into: mean stored bits of a number, or a memory.
struct PlanBudget {
  double bits = 0;          // 0: `memory` counts
  std::int64_t memory = 0;  // bytes of all sequences' caches
  std::int64_t tokens = 0;  // of each sequence
  std::int64_t batch = 1;   // sequences
};

// Bytes that one packed page of all layers and kv heads may take, so that caches with `sinks` and
// `window` tokens in 16 bits fit. Errors begin with "memory" or "tokens".
Result<std::int64_t> page_budget(const PlanBudget& budget, const PlanModel& model, int sinks,
                                 int window);

}  // namespace kvq
