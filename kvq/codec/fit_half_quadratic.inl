// The fit `hqq` of fit.h for one vector of lines.
//
// Cost: one round is 9 operations a number where every residual is small (then the pull is the
// residual itself), 45 otherwise: power() takes 30. Rounds: 3 or 4 at 8 bits, 10 at 2, all 20 where
// outliers widen the range.
#include "kvq/codec/fit_search.inl"

namespace kvq {
namespace {

constexpr int kMaxRounds = 20;
constexpr float kPullOfOne = 0.1F;       // 1 / beta of the proximal step
constexpr float kLeastPowered = 0.125F;  // below it, |residual| < 0.1 * power(|residual|) anyway

// x^-0.3: a linear function of the bits is within 4 %, three of Newton's steps for r^-10 = x^3
// within 1.2e-6.
inline Floats power(Floats x) {
  const Ints b = bits(x);
  Floats r = number(0x52920000 - ((b >> 2) + (b >> 5) + (b >> 6) + (b >> 8)));
  const Floats cube = x * x * x;
  for (int step = 0; step < 3; ++step) {
    const Floats r2 = r * r;
    const Floats r4 = r2 * r2;
    r = r * (1.1F - 0.1F * (cube * (r4 * r4 * r2)));
  }
  return r;
}

inline Floats pull_of(Floats residual) {
  const Floats magnitude = absolute(residual);
  const Floats limit = kPullOfOne * power(max(magnitude, splat(kLeastPowered)));
  return number(bits(min(magnitude, limit)) | (bits(residual) & kSignBit));
}

struct Residuals {
  Floats error;   // sum of |residual|
  Floats widest;  // of this line
};

// residuals: [members], out.
inline Residuals find_residuals(const Group& group, Floats middle, Floats scale, Floats shift,
                                Floats* residuals) {
  const Floats inverse_scale = inverse(scale);
  const Floats mid = splat(group.mid());
  const float last = group.last();
  Sum error;
  Floats widest{};
  for (int m = 0; m < group.members; m += 4) {
    for (int p = 0; p < 4; ++p) {
      const Floats rest = group.values[m + p] - middle - shift;
      const Floats level = round_code(rest * inverse_scale + mid, last) - kRounder - mid;
      const Floats residual = rest - scale * level;
      const Floats magnitude = absolute(residual);
      error.partial[p] += magnitude;
      widest = max(widest, magnitude);
      residuals[m + p] = residual;
    }
  }
  return {error.total(group.group_lines), widest};
}

// Scratch: [members], takes the residuals.
inline Fitted fit_half_quadratic(const Group& group, Floats* scratch) {
  const Range range = find_range(group);
  const Floats scale = round_to_half((range.high - range.low) / group.last());
  const Floats middle = (range.high + range.low) * 0.5F;
  Group residuals = group;
  residuals.values = scratch;
  Floats shift{};
  Floats least = splat(__builtin_inff());
  Ints running = least > 0.0F;
  for (int round = 0; round < kMaxRounds && any(running); ++round) {
    const Residuals found = find_residuals(group, middle, scale, shift, scratch);
    const Floats pulls = any(found.widest > kLeastPowered)
                             ? sum_over(residuals, pull_of)
                             : sum_over(residuals, [](Floats residual) { return residual; });
    shift = running ? shift + pulls / group.count() : shift;
    running &= found.error < least;
    least = running ? found.error : least;
  }
  return {scale, round_to_half(middle + shift)};
}

}  // namespace
}  // namespace kvq
