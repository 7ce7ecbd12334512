// The plan of least total cost within a number of bytes: a multiple-choice knapsack, solved
// exactly.
#pragma once

#include <cstdint>
#include <vector>

#include "kvq/base/status.h"
#include "kvq/plan/cost_table.h"

namespace kvq {

// One candidate a tensor (indices into table.tensors[i]) so that the bytes add up to at most
// `budget_bytes` and no other choice within them costs less, up to the rounding of a sum of
// doubles. Among choices of equal cost: one of the fewest bytes. Fails where even the smallest
// candidates exceed the budget. A budget above what the cheapest choice takes simply gives that
// choice.
Result<std::vector<int>> choose_optimal(const CostTable& table, std::int64_t budget_bytes);

}  // namespace kvq
