// Figures about plans: what each tensor's width costs alone, and plans against uniform formats.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>

#include "kvq/report/figures.h"
#include "kvq/report/heat_map.h"

namespace kvq {
namespace {

std::vector<std::string> layer_names(const Document& document) {
  std::vector<std::string> names;
  names.reserve(static_cast<std::size_t>(document.model.layers));
  for (int layer = 0; layer < document.model.layers; ++layer) {
    names.push_back(fmt::format("{}", layer));
  }
  return names;
}

HeatMap sensitivity_map(const Run& run, bool is_key) {
  const TensorSensitivity& sensitivity = *run.document.sensitivity;
  HeatMap map{
      .title = titled(run, is_key ? "Keys of one layer packed" : "Values of one layer packed"),
      .row_label = "bits",
      .column_label = "layer",
      .rows = sensitivity.widths,
      .columns = layer_names(run.document),
      .steps = &divergence_steps()};
  const auto& costs = is_key ? sensitivity.key : sensitivity.value;
  for (std::size_t width = 0; width < sensitivity.widths.size(); ++width) {
    auto& row = map.cells.emplace_back();
    for (std::size_t layer = 0; layer < costs.size(); ++layer) {
      const double cost = costs[layer][width];
      row.push_back(HeatCell{
          .value = cost,
          .text = short_divergence_text(cost),
          .tip = fmt::format("layer {}, {} in {} bits: KL {}", layer, is_key ? "keys" : "values",
                             sensitivity.widths[width], divergence_text(cost))});
    }
  }
  return map;
}

LineChart plans_chart(const Run& run) {
  LineChart chart = quality_chart(titled(run, "Plans against uniform formats"));
  Series uniform = front_series(run.document, "best uniform", "front");
  Series norm{.name = "norm", .style = "value", .marker = Marker::kSquare};
  Series sensitivity{.name = "sensitivity", .style = "key", .marker = Marker::kCircle};
  for (const MeasuredPlan& plan : run.document.plans) {
    add_point(plan.method == "norm" ? norm : sensitivity, plan.score);
  }
  chart.series = {std::move(uniform), std::move(norm), std::move(sensitivity)};
  return chart;
}

// The plans of the budget that is nearest to `bits`, one a method.
std::vector<const MeasuredPlan*> plans_near(const Document& document, double bits) {
  const auto nearest = std::ranges::min_element(
      document.plans, {}, [&](const MeasuredPlan& plan) { return std::abs(plan.budget - bits); });
  std::vector<const MeasuredPlan*> result;
  for (const MeasuredPlan& plan : document.plans) {
    if (plan.budget == nearest->budget) result.push_back(&plan);
  }
  return result;
}

HeatMap choice_map(const Run& run) {
  constexpr double kShownBudget = 2.75;
  HeatMap map{.row_label = "plan",
              .column_label = "layer",
              .columns = layer_names(run.document),
              .steps = &width_steps()};
  for (const MeasuredPlan* plan : plans_near(run.document, kShownBudget)) {
    map.title = titled(run, fmt::format("Widths chosen at {} bits", short_number(plan->budget)));
    for (const bool is_key : {true, false}) {
      map.rows.push_back(fmt::format("{} {}", plan->method, is_key ? "K" : "V"));
      auto& row = map.cells.emplace_back();
      for (const std::string& text : plan->layers) {
        const LayerSpec spec = parse_layer_spec(text).value();
        const std::string width(name((is_key ? spec.key : spec.value).bits));
        row.push_back(HeatCell{.value = std::strtod(width.c_str(), nullptr),
                               .text = width,
                               .tip = fmt::format("layer {}: {}", row.size(), text)});
      }
    }
  }
  return map;
}

}  // namespace

std::optional<Figure> sensitivity_figure(std::span<const Run> runs) {
  Figure figure{
      .id = "sensitivity",
      .title = "What each layer's keys and values are worth",
      .short_title = "Sensitivity",
      .caption =
          "KL divergence of the model's output when the keys (or the values) of this layer "
          "alone are packed and all others are exact, on text that the model wrote itself, "
          "other than the text that formats are compared on. A dark column needs bits; a "
          "pale one can do without.",
      .commands = commands_of(runs),
      .table = {{"layer", "bits", "K: KL, nats", "V: KL, nats"}, {}}};
  for (const Run& run : runs) {
    if (!run.document.sensitivity) continue;
    const TensorSensitivity& sensitivity = *run.document.sensitivity;
    figure.panels.push_back(draw(sensitivity_map(run, true)));
    figure.panels.push_back(draw(sensitivity_map(run, false)));
    for (std::size_t layer = 0; layer < sensitivity.key.size(); ++layer) {
      for (std::size_t width = 0; width < sensitivity.widths.size(); ++width) {
        figure.table.rows.push_back({titled(run, fmt::format("layer {}", layer)),
                                     sensitivity.widths[width],
                                     fmt::format("{:.6f}", sensitivity.key[layer][width]),
                                     fmt::format("{:.6f}", sensitivity.value[layer][width])});
      }
    }
  }
  if (figure.panels.empty()) return std::nullopt;
  return figure;
}

std::optional<Figure> plan_figure(std::span<const Run> runs) {
  Figure figure{
      .id = "plans",
      .title = "Plans: other widths for every layer",
      .short_title = "Plans",
      .caption =
          "norm: the published method, widths by the Frobenius norms of the projections. "
          "sensitivity: the formats of least measured effect, chosen among widths, axes, "
          "groups, parameters and rotations (without the rounds of refinement that kvq plan "
          "adds). best uniform: the line of the first figure, one format for all layers.",
      .commands = commands_of(runs),
      .table = {{"plan", "bits a number", "cache size", "KL, nats", "top-1", "formats by layer"},
                {}}};
  std::vector<LineChart> charts;
  std::vector<std::string> maps;
  for (const Run& run : runs) {
    if (run.document.plans.empty()) continue;
    charts.push_back(plans_chart(run));
    maps.push_back(draw(choice_map(run)));
    for (const MeasuredPlan& plan : run.document.plans) {
      const MeasuredFormat& score = plan.score;
      figure.table.rows.push_back({titled(run, score.name), short_number(score.effective_bits),
                                   short_number(100 * score.cache_share, 3) + " %",
                                   fmt::format("{:.6f}", score.kl),
                                   fmt::format("{:.2f} %", 100 * score.top1),
                                   fmt::format("{}", fmt::join(plan.layers, " "))});
    }
  }
  if (charts.empty()) return std::nullopt;
  figure.panels = draw(charts);
  std::ranges::move(maps, std::back_inserter(figure.panels));
  return figure;
}

}  // namespace kvq
