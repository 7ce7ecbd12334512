#include "kvq/codec/fit_reference.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <functional>
#include <limits>
#include <utility>

#include "kvq/codec/fit_candidates.inl"
#include "kvq/codec/page_layout.h"

namespace kvq {
namespace {

using Lines = std::vector<std::vector<float>>;  // [lines of a group][members]

float half(float x) { return to_float(to_half(std::clamp(x, -kHalfMax, kHalfMax))); }
float inverse(float scale) { return scale > 0 ? 1.0F / scale : 0.0F; }

class Group {
 public:
  Group(Lines lines, int levels) : lines_(std::move(lines)), levels_(levels) {}

  float mid() const { return 0.5F * static_cast<float>(levels_ - 1); }
  float last() const { return static_cast<float>(levels_ - 1); }
  float count() const { return static_cast<float>(lines_.size() * lines_[0].size()); }
  float low() const {
    return extreme([](float a, float b) { return b < a; });
  }
  float high() const {
    return extreme([](float a, float b) { return b > a; });
  }

  float round(float position) const { return std::clamp(std::nearbyint(position), 0.0F, last()); }

  float sum(const std::function<float(float)>& function) const {
    std::vector<float> totals;
    for (const auto& line : lines_) {
      float partial[4] = {};
      for (std::size_t m = 0; m < line.size(); ++m) partial[m % 4] += function(line[m]);
      totals.push_back((partial[0] + partial[2]) + (partial[1] + partial[3]));
    }
    if (totals.size() == 1) return totals[0];
    if (totals.size() == 2) return totals[0] + totals[1];
    return (totals[0] + totals[1]) + (totals[2] + totals[3]);
  }

  std::pair<float, float> fit_symmetric(Fit fit) const {
    const float widest = std::max(-low(), high()) / mid();
    if (fit == Fit::kMinMax) return {half(widest), 0.0F};
    const float mean = sum([](float x) { return std::abs(x); }) / count();
    float best_gain = 0;
    float best_scale = widest;
    const auto attempt = [&](float trial) {
      const auto level = [&](float x) { return round(x * inverse(trial) + mid()) - mid(); };
      const float product = sum([&](float x) { return x * level(x); });
      const float square = sum([&](float x) { return level(x) * level(x); });
      const float scale = square > 0 ? product / square : 0.0F;
      if (product * scale > best_gain) {
        best_gain = product * scale;
        best_scale = scale;
      }
    };
    const Candidates candidates = symmetric_candidates(levels_);
    std::for_each(candidates.begin, candidates.end, [&](const Candidate& candidate) {
      attempt((candidate.of_mean ? mean : widest) * candidate.ratio);
    });
    attempt(best_scale);
    return {half(best_scale), 0.0F};
  }

  std::pair<float, float> fit_hqq() const {
    const float scale = half((high() - low()) / last());
    const float middle = (high() + low()) * 0.5F;
    float shift = 0;
    float least = std::numeric_limits<float>::infinity();
    for (int i = 0; i < 20; ++i) {
      const auto residual = [&](float x) {
        const float rest = (x - middle) - shift;
        return rest - scale * (round(rest * inverse(scale) + mid()) - mid());
      };
      const auto pull = [&](float x) {
        const float limit = 0.1F * reference_power(std::max(std::abs(residual(x)), 0.125F));
        return std::clamp(residual(x), -limit, limit);
      };
      const float error = sum([&](float x) { return std::abs(residual(x)); });
      shift += sum(pull) / count();
      if (!(error < least)) break;
      least = error;
    }
    return {scale, half(middle + shift)};
  }

  std::pair<float, float> fit_affine(Fit fit) const {
    if (fit == Fit::kHqq) return fit_hqq();
    const float base = (high() - low()) / last();
    const float middle = (high() + low()) * 0.5F;
    if (fit == Fit::kMinMax) return {half(base), half(middle)};
    const float total = sum([&](float x) { return x - middle; });
    float best_gain = 0;
    float best_scale = base;
    float best_center = middle;
    const auto attempt = [&](float trial, float shift) {
      const auto code = [&](float x) { return round((x - middle) * inverse(trial) + shift); };
      const float product = sum([&](float x) { return (x - middle) * code(x); });
      const float square = sum([&](float x) { return code(x) * code(x); });
      const float codes = sum(code);
      const float mean = codes / count();
      const float covariance = product - total * mean;
      const float variance = square - codes * mean;
      const float scale = covariance > 0 && variance > 0 ? covariance / variance : 0.0F;
      if (covariance * scale > best_gain) {
        best_gain = covariance * scale;
        best_scale = scale;
        best_center = middle + (total / count() - scale * (mean - mid()));
      }
    };
    const Candidates candidates = affine_candidates(levels_);
    std::for_each(candidates.begin, candidates.end, [&](const Candidate& candidate) {
      attempt(base * candidate.ratio, mid() - candidate.offset);
    });
    attempt(best_scale, mid() - (best_center - middle) * inverse(best_scale));
    return {half(best_scale), half(best_center)};
  }

 private:
  float extreme(const std::function<bool(float, float)>& better) const {
    float found = lines_[0][0];
    for (const auto& line : lines_) {
      for (float x : line) found = better(found, x) ? x : found;
    }
    return found;
  }

  Lines lines_;
  int levels_;
};

}  // namespace

float reference_power(float x) {
  const auto b = std::bit_cast<std::uint32_t>(x);
  auto r = std::bit_cast<float>(0x52920000U - (b / 4 + b / 32 + b / 64 + b / 256));
  for (int step = 0; step < 3; ++step) {
    const float r2 = r * r;
    const float r4 = r2 * r2;
    r = r * (1.1F - 0.1F * (x * x * x * (r4 * r4 * r2)));
  }
  return r;
}

ReferenceTensor reference_fit(const TensorFormat& format, const std::vector<float>& values) {
  const TensorSpec& spec = format.spec;
  const int head_dim = format.head_dim;
  const int rows = format.is_key ? kPageTokens : head_dim;
  const auto at = [&](int row, int depth) {
    return format.is_key ? row * head_dim + depth : depth * head_dim + row;
  };
  ReferenceTensor result;
  result.codes.resize(values.size());
  for (int row = 0; row < rows; row += format.group_rows) {
    for (int depth = 0; depth < format.depth; depth += format.group_depth) {
      const int end_row = std::min(rows, row + format.group_rows);
      const int end_depth = std::min(format.depth, depth + format.group_depth);
      const bool members_are_depths = format.is_key == (spec.axis == Axis::kToken);
      Lines lines(static_cast<std::size_t>(members_are_depths ? end_row - row : end_depth - depth));
      for (int r = row; r < end_row; ++r) {
        for (int d = depth; d < end_depth; ++d) {
          lines[members_are_depths ? r - row : d - depth].push_back(values[at(r, d)]);
        }
      }
      const Group group(lines, levels(spec.bits));
      const auto [scale, center] =
          format.has_centers() ? group.fit_affine(spec.fit) : group.fit_symmetric(spec.fit);
      result.scales.push_back(to_half(scale));
      if (format.has_centers()) result.centers.push_back(to_half(center));
      for (int r = row; r < end_row; ++r) {
        for (int d = depth; d < end_depth; ++d) {
          const float position = (values[at(r, d)] - center) * inverse(scale) + group.mid();
          result.codes[at(r, d)] = static_cast<std::uint8_t>(group.round(position));
        }
      }
    }
  }
  return result;
}

void reference_hadamard(std::vector<float>& rows, int head_dim) {
  const auto block = static_cast<std::size_t>(hadamard_block(head_dim));
  const auto scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(block)));
  for (std::size_t start = 0; start < rows.size(); start += block) {
    for (std::size_t stride = 1; stride < block; stride *= 2) {
      for (std::size_t i = 0; i < block; ++i) {
        if ((i & stride) != 0) continue;
        const float low = rows[start + i];
        const float high = rows[start + i + stride];
        rows[start + i] = low + high;
        rows[start + i + stride] = low - high;
      }
    }
    for (std::size_t i = 0; i < block; ++i) rows[start + i] *= scale;
  }
}

double least_symmetric_error(const std::vector<double>& group, int levels) {
  struct Step {
    double scale;   // below it the number takes the next level
    double value;   // |x|
    double square;  // what the level's square grows by
  };
  const double first = levels % 2 == 0 ? 0.5 : 0.0;
  const double mid = 0.5 * (levels - 1);
  std::vector<Step> steps;
  double energy = 0;
  double product = 0;
  double square = 0;
  for (const double x : group) {
    energy += x * x;
    product += first * std::abs(x);
    square += first * first;
    for (int i = 0; first + i < mid; ++i) {
      const double level = first + i;
      steps.push_back({std::abs(x) / (level + 0.5), std::abs(x), 2 * level + 1});
    }
  }
  std::sort(steps.begin(), steps.end(),
            [](const Step& a, const Step& b) { return a.scale > b.scale; });
  double gain = square > 0 ? product * product / square : 0;
  for (const Step& step : steps) {
    product += step.value;
    square += step.square;
    gain = std::max(gain, product * product / square);
  }
  return energy - gain;
}

}  // namespace kvq
