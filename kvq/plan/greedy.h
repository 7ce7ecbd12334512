// The planners of the KVQ paper: greedy steps over code widths, and over group sizes. They count
// codes and groups as the paper does, not bytes; the order of their arithmetic (IEEE doubles) is
// part of their definition, so that they make the published plans exactly.
#pragma once

#include <vector>

#include "kvq/base/status.h"
#include "kvq/plan/cost_table.h"

namespace kvq {

struct GreedyPlan {
  std::vector<int> choice;  // a candidate a tensor
  double budget = 0;        // as given
  double average = 0;       // what the plan comes to; below (groups: other than) the budget where
                            // no step fits any more
};

// Widths whose average over all tensors is at most `budget` code bits (may be a fraction). Each
// tensor's candidates differ in width only, narrowest first. All begin at the narrowest; the step
// to a tensor's next width that takes the most error off per bit, among those that still fit, is
// taken until none fits. Fails below the narrowest average.
Result<GreedyPlan> choose_widths(const CostTable& table, double budget);

// Group sizes whose average is `budget`: the mean of 1 / group over the tensors is 1 / budget. Each
// tensor's candidates differ in group only, smallest first, and cost s * group. Begins at the
// continuous optimum, group ~ 1 / sqrt(s), rounded to the nearest candidate; then the least harmful
// (most helpful) steps are taken until the sum is met or none fits. Fails above the largest
// average.
Result<GreedyPlan> choose_groups(const CostTable& table, double budget);

}  // namespace kvq
