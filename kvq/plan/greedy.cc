#include "kvq/plan/greedy.h"

#include <cmath>
#include <cstdlib>
#include <optional>

namespace kvq {
namespace {

// Slack of every comparison of sums.
constexpr double kEpsilon = 1e-6;

const Candidate& at(const CostTable& table, std::size_t tensor, int index) {
  return table.tensors[tensor][static_cast<std::size_t>(index)];
}

bool has(const CostTable& table, std::size_t tensor, int index) {
  return index >= 0 && static_cast<std::size_t>(index) < table.tensors[tensor].size();
}

double width(const Candidate& candidate) { return code_bits(candidate.spec.bits); }

// The tensor whose next width takes the most error off per bit, among those that fit.
std::optional<std::size_t> best_width_step(const CostTable& table, const std::vector<int>& choice,
                                           double used, double total) {
  std::optional<std::size_t> best;
  double best_gain = -1;
  for (std::size_t tensor = 0; tensor < choice.size(); ++tensor) {
    if (!has(table, tensor, choice[tensor] + 1)) continue;
    const Candidate& from = at(table, tensor, choice[tensor]);
    const Candidate& to = at(table, tensor, choice[tensor] + 1);
    const double step = width(to) - width(from);
    if (used + step - total > kEpsilon) continue;
    const double gain = (from.cost - to.cost) / step;
    if (gain > best_gain + kEpsilon) {
      best = tensor;
      best_gain = gain;
    }
  }
  return best;
}

double inverse_group(const Candidate& candidate) { return 1.0 / candidate.spec.group; }

// The candidate nearest to `group`, the smaller of two equally near.
int nearest(const std::vector<Candidate>& candidates, double group) {
  int best = 0;
  for (std::size_t i = 1; i < candidates.size(); ++i) {
    const double distance = std::abs(candidates[i].spec.group - group);
    if (distance < std::abs(candidates[static_cast<std::size_t>(best)].spec.group - group))
      best = static_cast<int>(i);
  }
  return best;
}

// group ~ 1 / sqrt(s): the least sum of s * group for a given sum of 1 / group.
std::vector<int> continuous_optimum(const CostTable& table, double target) {
  std::vector<double> roots;
  double sum = 0;
  roots.reserve(table.tensors.size());
  for (const auto& candidates : table.tensors) {
    roots.push_back(std::sqrt(candidates[0].cost / candidates[0].spec.group));
    sum += roots.back();
  }
  const double kappa = sum / target;
  std::vector<int> choice;
  choice.reserve(table.tensors.size());
  for (std::size_t tensor = 0; tensor < roots.size(); ++tensor) {
    choice.push_back(nearest(table.tensors[tensor], kappa / roots[tensor]));
  }
  return choice;
}

// The best tensor to move by `direction`: +1 makes a group larger (the sum of inverses shrinks) at
// the least cost for it, -1 smaller at the most gain.
std::optional<std::size_t> best_group_step(const CostTable& table, const std::vector<int>& choice,
                                           double sum, double target, int direction) {
  std::optional<std::size_t> best;
  double best_rate = 0;
  for (std::size_t tensor = 0; tensor < choice.size(); ++tensor) {
    if (!has(table, tensor, choice[tensor] + direction)) continue;
    const Candidate& from = at(table, tensor, choice[tensor]);
    const Candidate& to = at(table, tensor, choice[tensor] + direction);
    const double reached = sum + (inverse_group(to) - inverse_group(from));
    if (direction > 0 ? reached + kEpsilon < target : reached - kEpsilon > target) continue;
    // Both differences change sign with the direction; the rate is a cost per unit of the sum.
    const double rate = (to.cost - from.cost) / (inverse_group(from) - inverse_group(to));
    if (!best || (direction > 0 ? rate < best_rate : rate > best_rate)) {
      best = tensor;
      best_rate = rate;
    }
  }
  return best;
}

// The narrowest widths' (largest groups') average, which no plan is below (above).
double edge_average(const CostTable& table, double (*size)(const Candidate&), bool last) {
  double sum = 0;
  for (const auto& candidates : table.tensors)
    sum += size(last ? candidates.back() : candidates.front());
  return sum / static_cast<double>(table.tensors.size());
}

}  // namespace

Result<GreedyPlan> choose_widths(const CostTable& table, double budget) {
  KVQ_RETURN_IF_ERROR(validate(table));
  const auto tensors = static_cast<double>(table.tensors.size());
  std::vector<int> choice(table.tensors.size(), 0);
  const double least = edge_average(table, width, /*last=*/false);
  double used = tensors * least;
  const double total = tensors * budget;
  if (!(used <= total + kEpsilon)) {
    return fail("expected at least {} bits, the narrowest widths, found {}", least, budget);
  }
  while (used + kEpsilon < total) {
    const auto tensor = best_width_step(table, choice, used, total);
    if (!tensor) break;
    int& index = choice[*tensor];
    used += width(at(table, *tensor, index + 1)) - width(at(table, *tensor, index));
    ++index;
  }
  return GreedyPlan{std::move(choice), budget, used / tensors};
}

Result<GreedyPlan> choose_groups(const CostTable& table, double budget) {
  KVQ_RETURN_IF_ERROR(validate(table));
  const auto tensors = static_cast<double>(table.tensors.size());
  const double largest = 1 / edge_average(table, inverse_group, /*last=*/true);
  if (!(budget > 0 && budget <= largest + kEpsilon)) {
    return fail("expected at most {}, the largest groups, found {}", largest, budget);
  }
  for (const auto& candidates : table.tensors) {
    if (!(candidates[0].cost > 0))
      return fail("group costs: expected numbers above 0, found {}", candidates[0].cost);
  }
  const double target = tensors / budget;
  std::vector<int> choice = continuous_optimum(table, target);
  double sum = 0;
  for (std::size_t tensor = 0; tensor < choice.size(); ++tensor) {
    sum += inverse_group(at(table, tensor, choice[tensor]));
  }
  while (std::abs(sum - target) > kEpsilon) {
    const int direction = sum > target ? 1 : -1;
    const auto tensor = best_group_step(table, choice, sum, target, direction);
    if (!tensor) break;
    int& index = choice[*tensor];
    sum += inverse_group(at(table, *tensor, index + direction)) -
           inverse_group(at(table, *tensor, index));
    index += direction;
  }
  return GreedyPlan{std::move(choice), budget, tensors / sum};
}

}  // namespace kvq
