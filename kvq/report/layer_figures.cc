// Figures over the layers of a model: norms of weights, sizes of activations, errors by width.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "kvq/report/figures.h"
#include "kvq/report/heat_map.h"
#include "kvq/report/line_chart.h"

namespace kvq {
namespace {

Series layer_series(bool is_key, std::vector<double> y) {
  Series series{.name = is_key ? "keys" : "values",
                .style = is_key ? "key" : "value",
                .marker = is_key ? Marker::kCircle : Marker::kSquare};
  for (std::size_t i = 0; i < y.size(); ++i) series.x.push_back(static_cast<double>(i));
  series.y = std::move(y);
  return series;
}

LineChart layer_chart(const Run& run, const std::string& title, const std::string& y_label) {
  return {.title = titled(run, title),
          .x_label = "layer",
          .y_label = y_label,
          .x_ticks = index_ticks(run.document.model.layers, 8)};
}

LineChart norm_chart(const Run& run, const std::string& title, const std::vector<double>& keys,
                     const std::vector<double>& values) {
  LineChart chart = layer_chart(run, title, "norm of the projection");
  chart.series = {layer_series(true, keys), layer_series(false, values)};
  return chart;
}

// One HeadRange of every layer's keys or values.
template <typename Choose>
Series range_series(const Document& document, bool is_key, Choose choose) {
  Series series = layer_series(is_key, {});
  for (const LayerActivations& layer : document.activations.layers) {
    const HeadRange range = choose(is_key ? layer.key : layer.value);
    series.x.push_back(static_cast<double>(series.x.size()));
    series.y.push_back(range.mean);
    series.low.push_back(range.low);
    series.high.push_back(range.high);
  }
  return series;
}

HeadRange size_of(const TensorActivations& tensor) { return tensor.root_mean_square; }
HeadRange largest_of(const TensorActivations& tensor) {
  return tensor.spectrum.empty() ? HeadRange{} : tensor.spectrum.front();
}

// Mean over the layers of one error of every width, with the least and the greatest.
Series error_series(const Document& document, bool is_key, double StoredError::*field,
                    double factor) {
  Series series = layer_series(is_key, {});
  if (document.activations.layers.empty()) return series;
  for (std::size_t i = 0; i < document.error_bits.size(); ++i) {
    double sum = 0;
    Domain domain;
    for (const LayerActivations& layer : document.activations.layers) {
      const double error = factor * (is_key ? layer.key : layer.value).errors[i].*field;
      sum += error;
      domain.include(error);
    }
    series.x.push_back(document.error_bits[i]);
    series.y.push_back(sum / static_cast<double>(document.activations.layers.size()));
    series.low.push_back(domain.low);
    series.high.push_back(domain.high);
  }
  return series;
}

LineChart error_chart(const Run& run, const std::string& title, const std::string& y_label,
                      double StoredError::*field, double factor) {
  LineChart chart{
      .title = titled(run, title), .x_label = "bits", .y_label = y_label, .log_y = true};
  for (const double bits : run.document.error_bits) {
    chart.x_ticks.push_back({bits, short_number(bits)});
  }
  chart.series = {error_series(run.document, true, field, factor),
                  error_series(run.document, false, field, factor)};
  return chart;
}

HeatMap error_map(const Run& run, bool is_key) {
  const Document& document = run.document;
  HeatMap map{
      .title = titled(run, is_key ? "Relative error of keys, %" : "Relative error of values, %"),
      .row_label = "bits",
      .column_label = "layer",
      .steps = &relative_error_steps()};
  for (std::size_t layer = 0; layer < document.activations.layers.size(); ++layer) {
    map.columns.push_back(fmt::format("{}", layer));
  }
  for (std::size_t i = 0; i < document.error_bits.size(); ++i) {
    map.rows.push_back(short_number(document.error_bits[i]));
    auto& row = map.cells.emplace_back();
    for (std::size_t layer = 0; layer < document.activations.layers.size(); ++layer) {
      const LayerActivations& activations = document.activations.layers[layer];
      const double percent =
          100 * (is_key ? activations.key : activations.value).errors[i].relative_error;
      row.push_back(HeatCell{.value = percent,
                             .text = short_number(percent, 2),
                             .tip = fmt::format("layer {}, {} bits: {} %", layer, map.rows.back(),
                                                short_number(percent, 3))});
    }
  }
  return map;
}

void append(std::vector<std::string>& panels, std::vector<std::string> added) {
  std::ranges::move(added, std::back_inserter(panels));
}

std::string layer_name(const Run& run, std::size_t layer) {
  return titled(run, fmt::format("layer {}", layer));
}

}  // namespace

std::optional<Figure> weight_norm_figure(std::span<const Run> runs) {
  std::vector<LineChart> frobenius;
  std::vector<LineChart> spectral;
  Figure figure{
      .id = "weight-norms",
      .title = "Norms of the projections that make keys and values",
      .short_title = "Weight norms",
      .caption =
          "Frobenius norm (root of the sum of squares) and spectral norm (largest singular "
          "value) of W_K and W_V, read from the checkpoint. Where keys stand above values, "
          "equal widths spend their bits in the wrong place.",
      .commands = commands_of(runs),
      .table = {{"layer", "Frobenius W_K", "Frobenius W_V", "spectral W_K", "spectral W_V"}, {}}};
  for (const Run& run : runs) {
    if (!run.document.weight_norms) continue;
    const WeightNorms& norms = *run.document.weight_norms;
    frobenius.push_back(
        norm_chart(run, "Frobenius norm", norms.key_frobenius, norms.value_frobenius));
    spectral.push_back(norm_chart(run, "Spectral norm", norms.key_spectral, norms.value_spectral));
    for (std::size_t i = 0; i < norms.key_frobenius.size(); ++i) {
      figure.table.rows.push_back({layer_name(run, i), short_number(norms.key_frobenius[i]),
                                   short_number(norms.value_frobenius[i]),
                                   short_number(norms.key_spectral[i]),
                                   short_number(norms.value_spectral[i])});
    }
  }
  if (frobenius.empty()) return std::nullopt;
  figure.panels = draw(frobenius);
  append(figure.panels, draw(spectral));
  return figure;
}

Figure activation_figure(std::span<const Run> runs) {
  std::vector<LineChart> sizes;
  std::vector<LineChart> largest;
  Figure figure{
      .id = "activations",
      .title = "Size of the cached keys and values",
      .short_title = "Sizes",
      .caption =
          "Keys after rotary embedding and values, as they are cached, over all tokens "
          "behind the sinks. First: Frobenius norm per number. Second: spectral norm per "
          "token, the strongest direction of the head. Lines are means over kv heads, bands "
          "reach from the least head to the greatest.",
      .commands = commands_of(runs),
      .table = {{"layer", "K rms", "least head", "greatest head", "V rms", "least head",
                 "greatest head", "K largest singular value", "V largest singular value"},
                {}}};
  for (const Run& run : runs) {
    LineChart& size =
        sizes.emplace_back(layer_chart(run, "Root mean square", "root mean square of a number"));
    LineChart& top = largest.emplace_back(
        layer_chart(run, "Largest singular value", "singular value / √tokens"));
    for (const bool is_key : {true, false}) {
      size.series.push_back(range_series(run.document, is_key, size_of));
      top.series.push_back(range_series(run.document, is_key, largest_of));
    }
    for (std::size_t i = 0; i < run.document.activations.layers.size(); ++i) {
      const LayerActivations& layer = run.document.activations.layers[i];
      const HeadRange key = size_of(layer.key);
      const HeadRange value = size_of(layer.value);
      figure.table.rows.push_back(
          {layer_name(run, i), short_number(key.mean), short_number(key.low),
           short_number(key.high), short_number(value.mean), short_number(value.low),
           short_number(value.high), short_number(largest_of(layer.key).mean),
           short_number(largest_of(layer.value).mean)});
    }
  }
  figure.panels = draw(sizes);
  append(figure.panels, draw(largest));
  return figure;
}

Figure error_figure(std::span<const Run> runs) {
  std::vector<LineChart> squared;
  std::vector<LineChart> relative;
  Figure figure{
      .id = "errors",
      .title = "Error of stored keys and values by width",
      .short_title = "Errors",
      .caption =
          "Every whole page of 64 tokens behind the sinks is packed and unpacked; other "
          "options are the defaults. Lines are means over layers, bands reach from the least "
          "layer to the greatest. Relative error is ‖x − y‖ / ‖x‖; 10 % are 20 dB of "
          "signal to noise.",
      .commands = commands_of(runs),
      .table = {{"layer", "bits", "K mean squared error", "V mean squared error",
                 "K relative error", "V relative error"},
                {}}};
  std::vector<std::string> maps;
  for (const Run& run : runs) {
    squared.push_back(error_chart(run, "Mean squared error", "mean squared error",
                                  &StoredError::mean_squared_error, 1));
    relative.push_back(
        error_chart(run, "Relative error", "relative error, %", &StoredError::relative_error, 100));
    maps.push_back(draw(error_map(run, true)));
    maps.push_back(draw(error_map(run, false)));
    for (std::size_t i = 0; i < run.document.activations.layers.size(); ++i) {
      const LayerActivations& layer = run.document.activations.layers[i];
      for (std::size_t width = 0; width < run.document.error_bits.size(); ++width) {
        figure.table.rows.push_back(
            {layer_name(run, i), short_number(run.document.error_bits[width]),
             short_number(layer.key.errors[width].mean_squared_error),
             short_number(layer.value.errors[width].mean_squared_error),
             short_number(100 * layer.key.errors[width].relative_error, 3) + " %",
             short_number(100 * layer.value.errors[width].relative_error, 3) + " %"});
      }
    }
  }
  figure.panels = draw(squared);
  append(figure.panels, draw(relative));
  append(figure.panels, std::move(maps));
  return figure;
}

}  // namespace kvq
