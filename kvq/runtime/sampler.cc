#include <algorithm>
#include <cmath>
#include <numeric>

#include "kvq/runtime/generate.h"

namespace kvq {
namespace {

struct Candidate {
  int token;
  double weight;  // probability, not normalized
};

// Heaviest first; of equals the lower token.
bool heavier(const Candidate& a, const Candidate& b) {
  return a.weight != b.weight ? a.weight > b.weight : a.token < b.token;
}

// exp((logit - max) / temperature) of every token.
std::vector<Candidate> weigh(std::span<const float> logits, float temperature) {
  const double max = *std::ranges::max_element(logits);
  std::vector<Candidate> candidates(logits.size());
  for (std::size_t i = 0; i < logits.size(); ++i) {
    candidates[i] = {static_cast<int>(i), std::exp((logits[i] - max) / temperature)};
  }
  return candidates;
}

double total_weight(std::span<const Candidate> candidates) {
  return std::accumulate(candidates.begin(), candidates.end(), 0.0,
                         [](double sum, const Candidate& next) { return sum + next.weight; });
}

// The fewest candidates, heaviest first, whose weights sum to `top_p` of the total. Taking them one
// by one from a heap costs little where few are enough, as they mostly are.
void keep_top_p(std::vector<Candidate>& candidates, float top_p) {
  const double needed = top_p * total_weight(candidates);
  const auto lighter = [](const Candidate& a, const Candidate& b) { return heavier(b, a); };
  std::ranges::make_heap(candidates, lighter);
  double sum = 0;
  auto heap_end = candidates.end();
  while (heap_end != candidates.begin() && (sum < needed || heap_end == candidates.end())) {
    std::pop_heap(candidates.begin(), heap_end, lighter);
    --heap_end;
    sum += heap_end->weight;
  }
  candidates.erase(candidates.begin(), heap_end);
  std::ranges::reverse(candidates);
}

}  // namespace

Sampler::Sampler(const SamplingOptions& options) : options_(options), random_(options.seed) {}

int Sampler::pick(std::span<const float> logits) {
  if (options_.temperature <= 0 || options_.top_k == 1) {
    return static_cast<int>(std::ranges::max_element(logits) - logits.begin());
  }
  std::vector<Candidate> candidates = weigh(logits, options_.temperature);
  const auto top_k = static_cast<std::size_t>(std::max(options_.top_k, 0));
  if (top_k > 0 && top_k < candidates.size()) {
    std::ranges::nth_element(candidates, candidates.begin() + static_cast<std::ptrdiff_t>(top_k),
                             heavier);
    candidates.resize(top_k);
  }
  if (options_.top_p < 1) keep_top_p(candidates, options_.top_p);
  // 53 random bits, a uniform double below 1 on every standard library.
  const double uniform = std::ldexp(static_cast<double>(random_() >> 11), -53);
  double left = uniform * total_weight(candidates);
  for (const Candidate& candidate : candidates) {
    left -= candidate.weight;
    if (left < 0) return candidate.token;
  }
  return candidates.back().token;
}

}  // namespace kvq
