#include "kvq/report/findings.h"

#include <fmt/format.h>

#include <algorithm>
#include <optional>

#include "kvq/report/figures.h"
#include "kvq/report/heat_map.h"
#include "kvq/report/scale.h"

namespace kvq {
namespace {

// Below it, a divergence is rounding and a ratio means nothing.
constexpr double kNoise = 1e-5;
// A tensor that does less of the damage is not worth a sentence.
constexpr double kRemarkableShare = 0.1;

const MeasuredFormat* cell(const Document& document, const MeasuredGrid& grid,
                           const std::string& row, const std::string& column) {
  const auto r = std::ranges::find(grid.rows, row);
  const auto c = std::ranges::find(grid.columns, column);
  if (r == grid.rows.end() || c == grid.columns.end()) return nullptr;
  return document.find_format(grid.cells[static_cast<std::size_t>(r - grid.rows.begin())]
                                        [static_cast<std::size_t>(c - grid.columns.begin())]);
}

std::string times(double ratio) { return short_number(ratio, 2) + " times"; }

std::optional<std::string> keys_against_values(const Document& document) {
  const MeasuredFormat* more_keys = cell(document, document.widths, "K4", "V2");
  const MeasuredFormat* more_values = cell(document, document.widths, "K2", "V4");
  if (more_keys == nullptr || more_values == nullptr || more_keys->kl < kNoise ||
      more_values->kl < kNoise) {
    return std::nullopt;
  }
  const std::string numbers = fmt::format(
      "4-bit keys with 2-bit values diverge by {} nats a token, 2-bit keys with 4-bit "
      "values, in the same bytes, by {}",
      divergence_text(more_keys->kl), divergence_text(more_values->kl));
  if (more_values->kl > more_keys->kl) {
    return fmt::format("Bits are worth more in keys: {}: {} as much.", numbers,
                       times(more_values->kl / more_keys->kl));
  }
  return fmt::format("Here bits are worth more in values: {}.", numbers);
}

std::optional<std::string> rotation(const Document& document) {
  const MeasuredFormat* none = cell(document, document.rotations, "K4V2", "none");
  const MeasuredFormat* both = cell(document, document.rotations, "K4V2", "both");
  if (none == nullptr || both == nullptr || none->kl < kNoise || both->kl < kNoise) {
    return std::nullopt;
  }
  const bool helps = both->kl < none->kl;
  return fmt::format(
      "Rotating keys and values {} the divergence of K4V2 from {} to {} nats, "
      "without a byte.",
      helps ? "lowers" : "raises", divergence_text(none->kl), divergence_text(both->kl));
}

// The plan by sensitivity that gains most on the best uniform format of its size.
std::optional<std::string> plans(const Document& document) {
  const std::vector<const MeasuredFormat*> front = pareto_front(document);
  const MeasuredFormat* best = nullptr;
  const MeasuredFormat* best_uniform = nullptr;
  for (const MeasuredPlan& plan : document.plans) {
    if (plan.method != "sensitivity" || plan.score.kl < kNoise) continue;
    const MeasuredFormat* uniform = nullptr;
    for (const MeasuredFormat* format : front) {
      if (format->effective_bits <= plan.budget + 1e-6) uniform = format;
    }
    if (uniform == nullptr || uniform->kl <= plan.score.kl) continue;
    if (best == nullptr || uniform->kl / plan.score.kl > best_uniform->kl / best->kl) {
      best = &plan.score;
      best_uniform = uniform;
    }
  }
  if (best == nullptr) return std::nullopt;
  const std::string bits = short_number(best->effective_bits, 3);
  return fmt::format(
      "A plan by sensitivity of {} bits diverges by {} nats, the best uniform format of at most "
      "its size ({}) by {}: `kvq plan --method sensitivity --budget {}`.",
      bits, divergence_text(best->kl), best_uniform->name, divergence_text(best_uniform->kl), bits);
}

std::optional<std::string> most_sensitive(const Document& document) {
  if (!document.sensitivity) return std::nullopt;
  const TensorSensitivity& sensitivity = *document.sensitivity;
  const auto width = std::ranges::find(sensitivity.widths, "2");
  if (width == sensitivity.widths.end()) return std::nullopt;
  const auto column = static_cast<std::size_t>(width - sensitivity.widths.begin());
  double sum = 0;
  double largest = 0;
  std::string tensor;
  for (std::size_t layer = 0; layer < sensitivity.key.size(); ++layer) {
    for (const bool is_key : {true, false}) {
      const double cost = (is_key ? sensitivity.key : sensitivity.value)[layer][column];
      sum += std::max(cost, 0.0);
      if (cost <= largest) continue;
      largest = cost;
      tensor = fmt::format("{} of layer {}", is_key ? "keys" : "values", layer);
    }
  }
  if (largest < kNoise || largest < kRemarkableShare * sum) return std::nullopt;
  return fmt::format("Of all tensors in 2 bits, one at a time, the {} do {:.0f} % of the damage.",
                     tensor, 100 * largest / sum);
}

std::optional<std::string> weight_norms(const Document& document) {
  if (!document.weight_norms) return std::nullopt;
  const WeightNorms& norms = *document.weight_norms;
  const auto larger = [](const std::vector<double>& keys, const std::vector<double>& values) {
    int count = 0;
    for (std::size_t i = 0; i < keys.size(); ++i) count += keys[i] > values[i] ? 1 : 0;
    return count;
  };
  return fmt::format(
      "The key projection has the larger Frobenius norm in {} of {} layers, the larger spectral "
      "norm in {}.",
      larger(norms.key_frobenius, norms.value_frobenius), norms.key_frobenius.size(),
      larger(norms.key_spectral, norms.value_spectral));
}

std::optional<std::string> activation_sizes(const Document& document) {
  const auto& layers = document.activations.layers;
  if (layers.empty()) return std::nullopt;
  const auto larger = std::ranges::count_if(layers, [](const LayerActivations& layer) {
    return layer.key.root_mean_square.mean > layer.value.root_mean_square.mean;
  });
  return fmt::format("Cached keys are larger than cached values in {} of {} layers.", larger,
                     layers.size());
}

}  // namespace

std::vector<Advice> advise(const Document& document) {
  std::vector<Advice> result = {{"nearly exact", 0.001, nullptr, nullptr},
                                {"balanced", 0.01, nullptr, nullptr},
                                {"small", 0.05, nullptr, nullptr}};
  for (const MeasuredFormat* format : pareto_front(document)) {
    for (Advice& advice : result) {
      if (advice.format == nullptr && format->kl < advice.limit) advice.format = format;
    }
  }
  for (Advice& advice : result) {
    for (const MeasuredPlan& plan : document.plans) {
      const MeasuredFormat* smallest = advice.plan != nullptr ? advice.plan : advice.format;
      const bool smaller =
          smallest == nullptr || plan.score.effective_bits < smallest->effective_bits;
      if (plan.method == "sensitivity" && plan.score.kl < advice.limit && smaller) {
        advice.plan = &plan.score;
      }
    }
  }
  return result;
}

std::vector<std::string> findings(const Document& document) {
  std::vector<std::string> result;
  for (auto* finding :
       {keys_against_values, rotation, plans, most_sensitive, weight_norms, activation_sizes}) {
    if (std::optional<std::string> sentence = finding(document)) {
      result.push_back(std::move(*sentence));
    }
  }
  return result;
}

}  // namespace kvq
