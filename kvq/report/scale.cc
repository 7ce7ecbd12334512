#include "kvq/report/scale.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

namespace kvq {
namespace {

// The smallest of 1, 2, 5 x 10^n that is at least `step`.
double round_step(double step) {
  const double power = std::pow(10, std::floor(std::log10(step)));
  for (const double factor : {1.0, 2.0, 5.0}) {
    if (factor * power >= step * (1 - 1e-9)) return factor * power;
  }
  return 10 * power;
}

std::string power_of_ten(int exponent) {
  if (exponent >= -3 && exponent <= 4) return short_number(std::pow(10, exponent));
  return fmt::format("1e{}", exponent);
}

constexpr int kLinearSteps = 4;

}  // namespace

std::string short_number(double value) { return short_number(value, 4); }

std::string short_number(double value, int digits) {
  if (std::isnan(value)) return "–";
  if (std::isinf(value)) return value > 0 ? "∞" : "-∞";
  if (value != 0 && std::abs(value) < 1e-4)
    return fmt::format("{:.{}g}", value, std::min(digits, 2));
  if (std::abs(value) >= 1e7) return fmt::format("{:.{}g}", value, digits);
  const double magnitude = value == 0 ? 0 : std::floor(std::log10(std::abs(value)));
  const int decimals = std::max(0, digits - 1 - static_cast<int>(magnitude));
  std::string text = fmt::format("{:.{}f}", value, decimals);
  if (decimals > 0) {
    text.erase(text.find_last_not_of('0') + 1);
    if (text.back() == '.') text.pop_back();
  }
  return text;
}

void Domain::include(double value) {
  if (!std::isfinite(value) || (logarithmic && value <= 0)) return;
  low = empty ? value : std::min(low, value);
  high = empty ? value : std::max(high, value);
  empty = false;
}

Scale::Scale(const Domain& domain, double from, double to)
    : logarithmic_(domain.logarithmic), from_(from), to_(to) {
  if (logarithmic_) {
    low_ = domain.empty ? 1 : std::pow(10, std::floor(std::log10(domain.low) + 1e-9));
    high_ = domain.empty ? 10 : std::pow(10, std::ceil(std::log10(domain.high) - 1e-9));
    if (high_ <= low_) high_ = 10 * low_;
    return;
  }
  const double low = domain.empty ? 0 : std::min(0.0, domain.low);
  double high = domain.empty ? 1 : std::max(0.0, domain.high);
  if (high <= low) high = low + 1;
  step_ = round_step((high - low) / kLinearSteps);
  low_ = std::floor(low / step_ + 1e-9) * step_;
  high_ = std::ceil(high / step_ - 1e-9) * step_;
}

Scale Scale::exact(double low, double high, double from, double to) {
  Scale scale;
  scale.low_ = low;
  scale.high_ = high > low ? high : low + 1;
  scale.from_ = from;
  scale.to_ = to;
  return scale;
}

double Scale::position(double value) const {
  if (logarithmic_) return std::log(value / low_) / std::log(high_ / low_);
  return (value - low_) / (high_ - low_);
}

double Scale::operator()(double value) const { return from_ + (to_ - from_) * position(value); }

bool Scale::shows(double value) const {
  return std::isfinite(value) && (!logarithmic_ || value > 0);
}

std::vector<Tick> Scale::ticks(int count) const {
  std::vector<Tick> result;
  if (logarithmic_) {
    const int first = static_cast<int>(std::lround(std::log10(low_)));
    const int last = static_cast<int>(std::lround(std::log10(high_)));
    const int step = std::max(1, (last - first + count - 1) / count);
    for (int exponent = first; exponent <= last; exponent += step) {
      result.push_back({std::pow(10, exponent), power_of_ten(exponent)});
    }
    return result;
  }
  const double step = std::max(step_, round_step((high_ - low_) / count));
  const auto first = static_cast<int>(std::ceil(low_ / step - 1e-9));
  const auto last = static_cast<int>(std::floor(high_ / step + 1e-6));
  for (int i = first; i <= last; ++i) result.push_back({i * step, short_number(i * step)});
  return result;
}

std::vector<Tick> index_ticks(int count, int most) {
  const int step = count <= most
                       ? 1
                       : static_cast<int>(std::ceil(round_step(static_cast<double>(count) / most)));
  std::vector<Tick> result;
  for (int i = 0; i < count; i += step)
    result.push_back({static_cast<double>(i), fmt::format("{}", i)});
  return result;
}

}  // namespace kvq
