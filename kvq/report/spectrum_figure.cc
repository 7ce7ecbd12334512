// Singular values of keys and values: a chart for every layer.
#include <fmt/format.h>

#include <algorithm>

#include "kvq/report/figures.h"
#include "kvq/report/line_chart.h"

namespace kvq {
namespace {

// Charts in sight; those of other layers unfold.
constexpr std::size_t kShownLayers = 6;
// Of a long spectrum, the first values and then evenly spaced ones: 80 layers of 256 values would
// fill megabytes. The JSON holds all.
constexpr std::size_t kFirstValues = 8;
constexpr std::size_t kOtherValues = 20;

// Indices of the singular values that are shown of `count`.
std::vector<std::size_t> shown_values(std::size_t count) {
  std::vector<std::size_t> result;
  for (std::size_t i = 0; i < std::min(count, kFirstValues); ++i) result.push_back(i);
  const std::size_t rest = count - result.size();
  const std::size_t steps = std::min(rest, kOtherValues);
  for (std::size_t step = 1; step <= steps; ++step) {
    result.push_back(kFirstValues - 1 + rest * step / steps);
  }
  return result;
}

Series spectrum_series(const std::vector<HeadRange>& spectrum, bool is_key) {
  Series series{.name = is_key ? "keys" : "values",
                .style = is_key ? "key" : "value",
                .marker = is_key ? Marker::kCircle : Marker::kSquare};
  for (const std::size_t i : shown_values(spectrum.size())) {
    series.x.push_back(static_cast<double>(i + 1));
    series.y.push_back(spectrum[i].mean);
    series.low.push_back(spectrum[i].low);
    series.high.push_back(spectrum[i].high);
  }
  return series;
}

// `count` layers spread over all, the first and the last among them.
bool is_shown(std::size_t layer, std::size_t layers) {
  if (layers <= kShownLayers) return true;
  for (std::size_t i = 0; i < kShownLayers; ++i) {
    if (i * (layers - 1) / (kShownLayers - 1) == layer) return true;
  }
  return false;
}

void add_rows(const Run& run, DataTable& table) {
  const auto& layers = run.document.activations.layers;
  for (std::size_t i = 0; i < layers.size(); ++i) {
    for (const std::size_t index : shown_values(layers[i].key.spectrum.size())) {
      const HeadRange& key = layers[i].key.spectrum[index];
      const HeadRange& value = layers[i].value.spectrum[index];
      table.rows.push_back({titled(run, fmt::format("layer {}", i)), fmt::format("{}", index + 1),
                            short_number(key.mean, 3), short_number(key.low, 3),
                            short_number(key.high, 3), short_number(value.mean, 3),
                            short_number(value.low, 3), short_number(value.high, 3)});
    }
  }
}

}  // namespace

Figure spectrum_figure(std::span<const Run> runs) {
  Figure figure{
      .id = "spectra",
      .title = "Singular values of keys and values",
      .short_title = "Spectra",
      .caption =
          "Of the matrix [tokens, head_dim] of each kv head, divided by √tokens, largest "
          "first. Lines are means over heads, bands reach from the least head to the "
          "greatest. A steep line has few strong directions: a rotation spreads them over "
          "all channels before packing.",
      .commands = commands_of(runs),
      .more_title = "All other layers",
      .table = {
          {"layer", "index", "K mean", "K least", "K greatest", "V mean", "V least", "V greatest"},
          {}}};
  std::vector<LineChart> charts;
  std::vector<bool> shown;
  for (const Run& run : runs) {
    const auto& layers = run.document.activations.layers;
    for (std::size_t i = 0; i < layers.size(); ++i) {
      charts.push_back({.title = titled(run, fmt::format("Layer {}", i)),
                        .x_label = "index of the singular value",
                        .y_label = "singular value / √tokens",
                        .log_y = true,
                        .series = {spectrum_series(layers[i].key.spectrum, true),
                                   spectrum_series(layers[i].value.spectrum, false)}});
      for (Series& series : charts.back().series) series.markers = false;
      shown.push_back(is_shown(i, layers.size()));
    }
    add_rows(run, figure.table);
  }
  std::vector<std::string> panels = draw(charts);
  for (std::size_t i = 0; i < panels.size(); ++i) {
    (shown[i] ? figure.panels : figure.more).push_back(std::move(panels[i]));
  }
  return figure;
}

}  // namespace kvq
