// The running state of a softmax-weighted sum, so that parts of a context can be reduced apart and
// merged afterwards.
//
// A part's state stands for sum_i 2^(s_i) v_i / sum_i 2^(s_i): scores s_i are in units of log2, so
// 1/ln(2) is folded into the scale of the queries once. `reference` is subtracted from every score
// before the exponential; it need not be the exact maximum, only near enough to keep 2^(s - r) in
// range.
#pragma once

#include <cmath>
#include <limits>

namespace kvq {

inline constexpr float kLog2E = 1.44269504088896341F;

struct SoftmaxState {
  float reference = -std::numeric_limits<float>::infinity();
  float sum = 0;  // of 2^(s_i - reference)

  bool empty() const { return sum == 0; }
};

// Factors that bring two parts' weighted sums to a common reference.
struct SoftmaxMerge {
  float mine;
  float theirs;
};

// Merges `other` into `state`. The caller then sets each element of its weighted sum to
// mine * its own + theirs * the other's.
inline SoftmaxMerge merge(SoftmaxState& state, const SoftmaxState& other) {
  if (other.empty()) return {1, 0};
  if (state.empty()) {
    state = other;
    return {0, 1};
  }
  const float reference = std::fmax(state.reference, other.reference);
  const SoftmaxMerge factors{std::exp2(state.reference - reference),
                             std::exp2(other.reference - reference)};
  state.reference = reference;
  state.sum = state.sum * factors.mine + other.sum * factors.theirs;
  return factors;
}

// What the weighted sum is multiplied with in the end.
inline float normalizer(const SoftmaxState& state) {
  return state.empty() ? 0.0F : 1.0F / state.sum;
}

}  // namespace kvq
