#include "kvq/eval/distribution.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>

namespace kvq {
namespace {

// Four floats, one register of any 64-bit machine.
using Lanes = float __attribute__((vector_size(16)));
using Words = std::uint32_t __attribute__((vector_size(16)));
constexpr int kLanes = 4;
// Vectors added up side by side, so that one addition need not wait for the last.
constexpr int kChains = 4;
constexpr int kStep = kLanes * kChains;
// Numbers added up in float before the sum moves to double.
constexpr int kBlock = 1024;

inline Lanes load(const float* source) {
  Lanes lanes;
  std::memcpy(&lanes, source, sizeof(lanes));
  return lanes;
}

inline void store(Lanes lanes, float* destination) {
  std::memcpy(destination, &lanes, sizeof(lanes));
}

inline Lanes broadcast(float value) { return Lanes{} + value; }

// e^x for x <= 0, relative error below 2e-7; x below -87 counts as -87, NaN stays NaN. The
// exponent is rounded by adding 1.5 * 2^23, which leaves it in the low bits of the fraction; the
// rest, |r| <= ln(2) / 2, goes through a polynomial (Cephes' expf).
inline Lanes exp_nonpositive(Lanes x) {
  constexpr float kRound = 12582912.0F;
  x = x < -87.0F ? broadcast(-87.0F) : x;
  const Lanes shifted = x * 1.44269504F + kRound;
  const Lanes exponent = shifted - kRound;
  const Lanes r = (x - exponent * 0.693359375F) + exponent * 2.12194440e-4F;
  Lanes p = r * 1.9875691500e-4F + 1.3981999507e-3F;
  p = p * r + 8.3334519073e-3F;
  p = p * r + 4.1665795894e-2F;
  p = p * r + 1.6666665459e-1F;
  p = p * r + 5.0000001201e-1F;
  const Lanes fraction = (p * r * r + r) + 1.0F;
  const Words power = (std::bit_cast<Words>(shifted) + 127U) << 23;
  return fraction * std::bit_cast<Lanes>(power);
}

// The sum over i in [0, count): lanes(i) gives four terms from i on, one(i) a single one.
template <typename LaneTerms, typename OneTerm>
inline double sum(int count, LaneTerms lanes, OneTerm one) {
  double total = 0;
  const int whole = count / kStep * kStep;
  for (int start = 0; start < whole; start += kBlock) {
    std::array<Lanes, kChains> sums{};
    for (int i = start; i < std::min(start + kBlock, whole); i += kStep) {
      for (int chain = 0; chain < kChains; ++chain) sums[chain] += lanes(i + chain * kLanes);
    }
    for (const Lanes& part : sums) {
      for (int lane = 0; lane < kLanes; ++lane) total += static_cast<double>(part[lane]);
    }
  }
  for (int i = whole; i < count; ++i) total += static_cast<double>(one(i));
  return total;
}

// The largest logit; NaNs are passed over.
float largest(const float* logits, int vocabulary) {
  Lanes best = broadcast(-HUGE_VALF);
  const int whole = vocabulary / kLanes * kLanes;
  for (int i = 0; i < whole; i += kLanes) {
    const Lanes next = load(logits + i);
    best = next > best ? next : best;
  }
  float result = -HUGE_VALF;
  for (int lane = 0; lane < kLanes; ++lane) result = std::max(result, best[lane]);
  for (int i = whole; i < vocabulary; ++i) result = std::max(result, logits[i]);
  return result;
}

}  // namespace

int arg_max(const float* logits, int vocabulary) {
  const float* end = logits + vocabulary;
  const float* found = std::find(logits, end, largest(logits, vocabulary));
  return found == end ? -1 : static_cast<int>(found - logits);
}

double log_sum_exp(const float* logits, int vocabulary) {
  const float top = largest(logits, vocabulary);
  const double total = sum(
      vocabulary, [=](int i) { return exp_nonpositive(load(logits + i) - top); },
      [=](int i) { return std::exp(logits[i] - top); });
  return static_cast<double>(top) + std::log(total);
}

double softmax(const float* logits, int vocabulary, float* probabilities) {
  const float top = largest(logits, vocabulary);
  const double total = sum(
      vocabulary,
      [=](int i) {
        const Lanes power = exp_nonpositive(load(logits + i) - top);
        store(power, probabilities + i);
        return power;
      },
      [=](int i) { return probabilities[i] = std::exp(logits[i] - top); });
  const auto inverse = static_cast<float>(1.0 / total);
  for (int i = 0; i < vocabulary; ++i) probabilities[i] *= inverse;
  return static_cast<double>(top) + std::log(total);
}

double expected_difference(const float* probabilities, const float* first, const float* second,
                           int vocabulary) {
  return sum(
      vocabulary,
      [=](int i) { return load(probabilities + i) * (load(first + i) - load(second + i)); },
      [=](int i) { return probabilities[i] * (first[i] - second[i]); });
}

}  // namespace kvq
