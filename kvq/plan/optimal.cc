// Exact by construction: dynamic programming over (bytes, cost) of the first i tensors, from which
// only choices are dropped that cannot belong to an optimal plan:
//
//   dominated   another choice for the same tensors takes no more bytes and costs no more;
//   infeasible  the smallest candidates of the other tensors do not fit beside it;
//   bounded     every way to complete it costs more than a plan that is known to exist.
//
// The bound is Lagrange's. For any price w >= 0 of a byte, a plan within B bytes costs at least
//
//   L = sum over tensors of min(cost + w bytes) - w B,
//
// and a candidate that is off its tensor's minimum of cost + w bytes by `excess` adds that much:
// cost of a plan = L + sum of excesses + w * (unused bytes). A partial choice whose L + excesses
// are above the cost of a known plan is dropped. w is the slope of the lower convex hull at which
// the linear relaxation uses up the budget; there L is the relaxation's optimum, and few choices
// are left: the gap is at most the cost of one step of one tensor.
#include "kvq/plan/optimal.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <tuple>

namespace kvq {
namespace {

// A candidate that no other of its tensor dominates.
struct Option {
  std::int64_t bytes;
  double cost;
  int candidate;      // index into the tensor's candidates
  double excess = 0;  // cost + price * bytes above the tensor's minimum of it
};
using Options = std::vector<Option>;  // bytes ascending, cost descending

struct Tensor {
  std::size_t index;  // in the cost table
  Options options;
  std::size_t relaxed = 0;  // the relaxation's option, rounded down in bytes
  // Steps of the relaxation between the tensor's nearest and the one that does not fit.
  std::size_t distance = std::numeric_limits<std::size_t>::max();
};

Options undominated(const std::vector<Candidate>& candidates) {
  Options all;
  all.reserve(candidates.size());
  for (std::size_t i = 0; i < candidates.size(); ++i) {
    all.push_back({candidates[i].bytes, candidates[i].cost, static_cast<int>(i)});
  }
  std::ranges::sort(all, {}, [](const Option& option) {
    return std::tuple(option.bytes, option.cost, option.candidate);
  });
  Options kept;
  for (const Option& option : all) {
    if (kept.empty() || option.cost < kept.back().cost) kept.push_back(option);
  }
  return kept;
}

// Cost saved per byte from one option to another of more bytes.
double slope(const Option& from, const Option& to) {
  return (from.cost - to.cost) / static_cast<double>(to.bytes - from.bytes);
}

// A step along the lower convex hull of one tensor's options.
struct Step {
  double slope;
  std::int64_t bytes;
  std::size_t tensor;
  std::size_t option;  // that it leads to
};

void append_hull_steps(const Options& options, std::size_t tensor, std::vector<Step>& steps) {
  std::vector<std::size_t> hull;
  for (std::size_t i = 0; i < options.size(); ++i) {
    while (hull.size() >= 2 && slope(options[hull[hull.size() - 2]], options[hull.back()]) <=
                                   slope(options[hull.back()], options[i])) {
      hull.pop_back();
    }
    hull.push_back(i);
  }
  for (std::size_t i = 1; i < hull.size(); ++i) {
    const Option& from = options[hull[i - 1]];
    const Option& to = options[hull[i]];
    steps.push_back({slope(from, to), to.bytes - from.bytes, tensor, hull[i]});
  }
}

// Solves the linear relaxation: from the smallest options, steps in order of what they save per
// byte, until one does not fit in `room` bytes. Sets each tensor's relaxed option and gives that
// step's slope, the price of a byte; 0 if the cheapest options of all fit. Orders the tensors by
// how close their steps are to that one: those that an optimal plan is likely to change come first.
double relax(std::vector<Tensor>& tensors, std::int64_t room) {
  std::vector<Step> steps;
  for (std::size_t i = 0; i < tensors.size(); ++i) append_hull_steps(tensors[i].options, i, steps);
  std::ranges::stable_sort(steps, std::ranges::greater{}, &Step::slope);
  std::size_t last = 0;
  for (; last < steps.size() && steps[last].bytes <= room; ++last) {
    room -= steps[last].bytes;
    tensors[steps[last].tensor].relaxed = steps[last].option;
  }
  for (std::size_t i = 0; i < steps.size(); ++i) {
    std::size_t& distance = tensors[steps[i].tensor].distance;
    distance = std::min(distance, i < last ? last - i : i - last);
  }
  std::ranges::stable_sort(tensors, {}, &Tensor::distance);
  return last < steps.size() ? steps[last].slope : 0;
}

// One choice for the tensors so far.
struct State {
  std::int64_t bytes;
  double cost;
  double excess;
  std::int32_t parent;  // index of the state that it continues
  std::int32_t candidate;
};

// Of two lists with bytes ascending, those states that no other dominates: bytes ascending, cost
// descending.
void merge_undominated(const std::vector<State>& left, const std::vector<State>& right,
                       std::vector<State>& merged) {
  merged.clear();
  std::size_t l = 0;
  std::size_t r = 0;
  while (l < left.size() || r < right.size()) {
    const bool from_left =
        r == right.size() || (l < left.size() && std::tie(left[l].bytes, left[l].cost) <=
                                                     std::tie(right[r].bytes, right[r].cost));
    const State& state = from_left ? left[l++] : right[r++];
    if (merged.empty() || state.cost < merged.back().cost) merged.push_back(state);
  }
}

class Search {
 public:
  Search(std::vector<Tensor> tensors, std::int64_t budget)
      : tensors_(std::move(tensors)), budget_(budget) {
    std::int64_t room = budget;
    for (const Tensor& tensor : tensors_) room -= tensor.options.front().bytes;
    price_ = relax(tensors_, room);
    double scale = price_ * static_cast<double>(budget);
    double minima = 0;
    for (Tensor& tensor : tensors_) {
      minima += set_excess(tensor.options);
      scale +=
          std::max(std::abs(tensor.options.front().cost), std::abs(tensor.options.back().cost));
    }
    tolerance_ = 1e-12 * scale;
    lower_bound_ = minima - price_ * static_cast<double>(budget);
    set_tails();
  }

  std::vector<int> run() {
    std::vector<State> states = {{0, 0, 0, -1, -1}};
    improve_upper_bound(states, 0);
    for (std::size_t tensor = 0; tensor < tensors_.size() && gap_is_open(); ++tensor) {
      states = extend(states, tensor);
      std::vector<Link>& level = links_.emplace_back();
      level.reserve(states.size());
      for (const State& state : states) level.push_back({state.parent, state.candidate});
      improve_upper_bound(states, tensor + 1);
    }
    // After the last tensor costs descend with the bytes: the last state is the optimum.
    if (gap_is_open()) best_ = {tensors_.size(), states.size() - 1};
    return choice_of(best_);
  }

 private:
  struct Link {
    std::int32_t parent;
    std::int32_t candidate;
  };
  // What tensors i, i + 1, ... add at least, and what the relaxation's choices for them add.
  struct Tail {
    std::int64_t least_bytes = 0;
    std::int64_t bytes = 0;
    double cost = 0;
  };
  // A state of the first `tensors` tensors, completed by the relaxation's choices.
  struct Plan {
    std::size_t tensors;
    std::size_t state;
  };

  // Whether a plan below the best one's cost is possible.
  bool gap_is_open() const { return upper_bound_ > lower_bound_ + tolerance_; }

  std::vector<int> choice_of(const Plan& plan) const {
    std::vector<int> choice(tensors_.size());
    for (const Tensor& tensor : tensors_) {
      choice[tensor.index] = tensor.options[tensor.relaxed].candidate;
    }
    std::size_t state = plan.state;
    for (std::size_t tensor = plan.tensors; tensor-- > 0;) {
      const Link link = links_[tensor][state];
      choice[tensors_[tensor].index] = link.candidate;
      state = static_cast<std::size_t>(link.parent);
    }
    return choice;
  }

  // The tensor's minimum of cost + price * bytes.
  double set_excess(Options& options) const {
    double least = std::numeric_limits<double>::infinity();
    for (Option& option : options) {
      option.excess = option.cost + price_ * static_cast<double>(option.bytes);
      least = std::min(least, option.excess);
    }
    for (Option& option : options) option.excess -= least;
    return least;
  }

  void set_tails() {
    tails_.resize(tensors_.size() + 1);
    for (std::size_t i = tensors_.size(); i-- > 0;) {
      const Option& relaxed = tensors_[i].options[tensors_[i].relaxed];
      tails_[i] = {tails_[i + 1].least_bytes + tensors_[i].options.front().bytes,
                   tails_[i + 1].bytes + relaxed.bytes, tails_[i + 1].cost + relaxed.cost};
    }
  }

  // States completed by the relaxation's choices for the other tensors are plans, if they fit.
  void improve_upper_bound(const std::vector<State>& states, std::size_t next) {
    for (std::size_t i = 0; i < states.size(); ++i) {
      if (states[i].bytes + tails_[next].bytes > budget_) break;  // bytes ascend
      const double cost = states[i].cost + tails_[next].cost;
      if (cost >= upper_bound_) continue;
      upper_bound_ = cost;
      best_ = {next, i};
    }
  }

  std::vector<State> extend(const std::vector<State>& states, std::size_t tensor) const {
    const std::int64_t room = budget_ - tails_[tensor + 1].least_bytes;
    std::vector<State> next;
    std::vector<State> extended;
    std::vector<State> merged;
    for (const Option& option : tensors_[tensor].options) {
      extended.clear();
      for (std::size_t i = 0; i < states.size(); ++i) {
        const State& state = states[i];
        if (state.bytes + option.bytes > room) break;  // bytes ascend
        const double excess = state.excess + option.excess;
        if (lower_bound_ + excess > upper_bound_ + tolerance_) continue;
        extended.push_back({state.bytes + option.bytes, state.cost + option.cost, excess,
                            static_cast<std::int32_t>(i), option.candidate});
      }
      if (extended.empty()) continue;
      merge_undominated(next, extended, merged);
      next.swap(merged);
    }
    return next;
  }

  std::vector<Tensor> tensors_;
  std::int64_t budget_;
  double price_ = 0;                                              // of a byte
  double lower_bound_ = 0;                                        // of every plan's cost
  double upper_bound_ = std::numeric_limits<double>::infinity();  // of the optimal plan's
  double tolerance_ = 0;  // far above the rounding of sums of costs
  std::vector<Tail> tails_;
  std::vector<std::vector<Link>> links_;  // of the states after each tensor
  Plan best_{0, 0};                       // of cost upper_bound_
};

}  // namespace

Result<std::vector<int>> choose_optimal(const CostTable& table, std::int64_t budget_bytes) {
  KVQ_RETURN_IF_ERROR(validate(table));
  std::vector<Tensor> tensors;
  std::int64_t least = 0;
  tensors.reserve(table.tensors.size());
  for (const auto& candidates : table.tensors) {
    tensors.push_back({tensors.size(), undominated(candidates)});
    least += tensors.back().options.front().bytes;
  }
  if (least > budget_bytes) {
    return fail("the smallest plan takes {} bytes for each {} tokens, the budget is {}", least,
                kPageTokens, budget_bytes);
  }
  return Search(std::move(tensors), budget_bytes).run();
}

}  // namespace kvq
