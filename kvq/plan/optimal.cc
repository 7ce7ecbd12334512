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
#include <numeric>
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
};

void append_hull_steps(const Options& options, std::vector<Step>& steps) {
  Options hull;
  for (const Option& option : options) {
    while (hull.size() >= 2 &&
           slope(hull[hull.size() - 2], hull.back()) <= slope(hull.back(), option)) {
      hull.pop_back();
    }
    hull.push_back(option);
  }
  for (std::size_t i = 1; i < hull.size(); ++i) {
    steps.push_back({slope(hull[i - 1], hull[i]), hull[i].bytes - hull[i - 1].bytes});
  }
}

// The price of a byte at which the linear relaxation uses up `room` bytes beyond the smallest
// options; 0 if the cheapest options of all fit.
double byte_price(const std::vector<Options>& tensors, std::int64_t room) {
  std::vector<Step> steps;
  for (const Options& options : tensors) append_hull_steps(options, steps);
  std::ranges::sort(steps, std::ranges::greater{}, &Step::slope);
  for (const Step& step : steps) {
    if (step.bytes > room) return step.slope;
    room -= step.bytes;
  }
  return 0;
}

// One choice for the tensors so far.
struct State {
  std::int64_t bytes;
  double cost;
  double excess;
  std::int32_t parent;  // index of the state that it continues
  std::int32_t candidate;
};

class Search {
 public:
  Search(std::vector<Options> tensors, std::int64_t budget)
      : tensors_(std::move(tensors)), budget_(budget) {
    const auto smallest = [](std::int64_t sum, const Options& options) {
      return sum + options[0].bytes;
    };
    const std::int64_t least =
        std::accumulate(tensors_.begin(), tensors_.end(), std::int64_t{0}, smallest);
    price_ = byte_price(tensors_, budget - least);
    double scale = price_ * static_cast<double>(budget);
    double minima = 0;
    for (Options& options : tensors_) {
      minima += set_excess(options);
      scale += std::max(std::abs(options.front().cost), std::abs(options.back().cost));
    }
    tolerance_ = 1e-12 * scale;
    lower_bound_ = minima - price_ * static_cast<double>(budget);
    set_tails();
  }

  std::vector<int> run() {
    std::vector<State> states = {{0, 0, 0, -1, -1}};
    improve_upper_bound(states, 0);
    std::vector<std::vector<Link>> links;
    for (std::size_t tensor = 0; tensor < tensors_.size(); ++tensor) {
      states = extend(states, tensor);
      improve_upper_bound(states, tensor + 1);
      std::vector<Link>& level = links.emplace_back();
      level.reserve(states.size());
      for (const State& state : states) level.push_back({state.parent, state.candidate});
    }
    // Costs descend with the bytes: the last state is the cheapest.
    std::vector<int> choice(tensors_.size());
    std::int32_t state = static_cast<std::int32_t>(states.size()) - 1;
    for (std::size_t tensor = tensors_.size(); tensor-- > 0;) {
      const Link link = links[tensor][static_cast<std::size_t>(state)];
      choice[tensor] = link.candidate;
      state = link.parent;
    }
    return choice;
  }

 private:
  struct Link {
    std::int32_t parent;
    std::int32_t candidate;
  };
  // What tensors i, i + 1, ... add at least, and what the relaxation's choice for them adds.
  struct Tail {
    std::int64_t least_bytes = 0;
    std::int64_t bytes = 0;
    double cost = 0;
  };

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
      const Options& options = tensors_[i];
      const Option& relaxed = *std::ranges::min_element(options, {}, &Option::excess);
      tails_[i] = {tails_[i + 1].least_bytes + options[0].bytes,
                   tails_[i + 1].bytes + relaxed.bytes, tails_[i + 1].cost + relaxed.cost};
    }
  }

  // States completed by the relaxation's choice for the other tensors are plans, if they fit.
  void improve_upper_bound(const std::vector<State>& states, std::size_t next) {
    for (const State& state : states) {
      if (state.bytes + tails_[next].bytes > budget_) break;  // bytes ascend
      upper_bound_ = std::min(upper_bound_, state.cost + tails_[next].cost);
    }
  }

  std::vector<State> extend(const std::vector<State>& states, std::size_t tensor) const {
    const std::int64_t room = budget_ - tails_[tensor + 1].least_bytes;
    std::vector<State> next;
    for (const Option& option : tensors_[tensor]) {
      for (std::size_t i = 0; i < states.size(); ++i) {
        const State& state = states[i];
        if (state.bytes + option.bytes > room) break;  // bytes ascend
        const double excess = state.excess + option.excess;
        if (lower_bound_ + excess > upper_bound_ + tolerance_) continue;
        next.push_back({state.bytes + option.bytes, state.cost + option.cost, excess,
                        static_cast<std::int32_t>(i), option.candidate});
      }
    }
    std::ranges::sort(next, {}, [](const State& state) {
      return std::tuple(state.bytes, state.cost, state.candidate, state.parent);
    });
    std::size_t kept = 0;
    for (const State& state : next) {
      if (kept == 0 || state.cost < next[kept - 1].cost) next[kept++] = state;
    }
    next.resize(kept);
    return next;
  }

  std::vector<Options> tensors_;
  std::int64_t budget_;
  double price_ = 0;                                              // of a byte
  double lower_bound_ = 0;                                        // of every plan's cost
  double upper_bound_ = std::numeric_limits<double>::infinity();  // of the optimal plan's
  double tolerance_ = 0;  // far above the rounding of sums of costs
  std::vector<Tail> tails_;
};

}  // namespace

Result<std::vector<int>> choose_optimal(const CostTable& table, std::int64_t budget_bytes) {
  KVQ_RETURN_IF_ERROR(validate(table));
  std::vector<Options> tensors;
  std::int64_t least = 0;
  tensors.reserve(table.tensors.size());
  for (const auto& candidates : table.tensors) {
    tensors.push_back(undominated(candidates));
    least += tensors.back().front().bytes;
  }
  if (least > budget_bytes) {
    return fail("the smallest plan takes {} bytes for each {} tokens, the budget is {}", least,
                kPageTokens, budget_bytes);
  }
  return Search(std::move(tensors), budget_bytes).run();
}

}  // namespace kvq
