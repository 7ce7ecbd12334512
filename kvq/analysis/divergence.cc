#include "kvq/analysis/divergence.h"

#include <algorithm>
#include <cmath>

#include "kvq/eval/distribution.h"

namespace kvq {

void ReferenceOutput::keep(std::span<const float> logits) {
  const std::size_t rows = logits.size() / static_cast<std::size_t>(vocabulary_);
  logits_.assign(logits.begin(), logits.end());
  probabilities_.resize(logits.size());
  log_sums_.resize(rows);
  divergences_.resize(rows);
  threads_.run(static_cast<int>(rows), [&](int row, int /*worker*/) {
    log_sums_[static_cast<std::size_t>(row)] =
        softmax(&logits_[offset(row)], vocabulary_, &probabilities_[offset(row)]);
  });
}

Result<std::span<const float>> ReferenceOutput::divergences(std::span<const float> logits) {
  threads_.run(static_cast<int>(divergences_.size()), [&](int row, int /*worker*/) {
    const float* actual = &logits[offset(row)];
    const double difference = expected_difference(&probabilities_[offset(row)],
                                                  &logits_[offset(row)], actual, vocabulary_);
    const auto index = static_cast<std::size_t>(row);
    divergences_[index] =
        static_cast<float>(difference - log_sums_[index] + log_sum_exp(actual, vocabulary_));
  });
  if (std::ranges::all_of(divergences_, [](float x) { return std::isfinite(x); })) {
    return divergences_;
  }
  return fail("the model's logits are not finite numbers");
}

}  // namespace kvq
