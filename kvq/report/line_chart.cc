#include "kvq/report/line_chart.h"

#include <fmt/format.h>

#include <algorithm>

namespace kvq {
namespace {

constexpr double kWidth = 360;
constexpr double kHeight = 250;
constexpr double kLeft = 54;
constexpr double kRight = 350;
constexpr double kTop = 48;
constexpr double kBottom = 208;
constexpr double kCharacter = 6.2;  // width of one, on average
constexpr std::size_t kManyPoints = 24;

struct Axes {
  Scale x;
  Scale y;
};

Scale x_axis(const LineChart& chart) {
  constexpr double kInset = 8;
  Domain x;
  for (const Tick& tick : chart.x_ticks) x.include(tick.value);
  for (const Series& series : chart.series) {
    for (const double value : series.x) x.include(value);
  }
  return Scale::exact(x.low, x.high, kLeft + kInset, kRight - kInset);
}

Scale y_axis(std::span<const LineChart> charts) {
  Domain y{.logarithmic = charts.front().log_y};
  for (const LineChart& chart : charts) {
    for (const Series& series : chart.series) {
      for (const auto* values : {&series.y, &series.low, &series.high}) {
        for (const double value : *values) y.include(value);
      }
    }
  }
  return {y, kBottom, kTop};
}

void draw_frame(Svg& svg, const LineChart& chart, const Axes& axes) {
  svg.text({0, 13}, Anchor::kStart, "title", chart.title);
  for (const Tick& tick : axes.y.ticks(5)) {
    const double y = axes.y(tick.value);
    svg.line({kLeft, y}, {kRight, y}, "grid");
    svg.text({kLeft - 6, y + 4}, Anchor::kEnd, "tick", tick.label);
  }
  svg.line({kLeft, kBottom}, {kRight, kBottom}, "axis");
  for (const Tick& tick : chart.x_ticks.empty() ? axes.x.ticks(7) : chart.x_ticks) {
    const double x = axes.x(tick.value);
    svg.line({x, kBottom}, {x, kBottom + 4}, "axis");
    svg.text({x, kBottom + 17}, Anchor::kMiddle, "tick", tick.label);
  }
  svg.text({(kLeft + kRight) / 2, kBottom + 36}, Anchor::kMiddle, "label", chart.x_label);
  svg.vertical_text({11, (kTop + kBottom) / 2}, "label", chart.y_label);
}

void draw_legend(Svg& svg, const LineChart& chart) {
  double x = kLeft;
  for (const Series& series : chart.series) {
    if (series.name.empty()) continue;
    if (series.line) svg.line({x, 31}, {x + 18, 31}, "line " + series.style);
    if (series.markers) svg.marker(series.marker, {x + 9, 31}, 3.2, "dot " + series.style);
    svg.text({x + 23, 35}, Anchor::kStart, "key-text", series.name);
    x += 37 + kCharacter * static_cast<double>(series.name.size());
  }
}

std::vector<Point> points_of(const Axes& axes, const std::vector<double>& x,
                             const std::vector<double>& y) {
  std::vector<Point> points;
  for (std::size_t i = 0; i < x.size(); ++i) {
    if (axes.y.shows(y[i])) points.push_back({axes.x(x[i]), axes.y(y[i])});
  }
  return points;
}

void draw_band(Svg& svg, const Series& series, const Axes& axes) {
  if (series.low.empty()) return;
  std::vector<double> x;
  std::vector<double> low;
  std::vector<double> high;
  for (std::size_t i = 0; i < series.x.size(); ++i) {
    if (!axes.y.shows(series.low[i]) || !axes.y.shows(series.high[i])) continue;
    x.push_back(series.x[i]);
    low.push_back(series.low[i]);
    high.push_back(series.high[i]);
  }
  svg.band(points_of(axes, x, low), points_of(axes, x, high), "band " + series.style);
}

std::string tip_of(const LineChart& chart, const Series& series, std::size_t i) {
  if (!series.tips.empty()) return series.tips[i];
  std::string tip = fmt::format("{} {}: {} {}", chart.x_label, short_number(series.x[i]),
                                series.name, short_number(series.y[i]));
  if (!series.low.empty()) {
    tip += fmt::format(" ({} to {})", short_number(series.low[i]), short_number(series.high[i]));
  }
  return tip;
}

void draw_series(Svg& svg, const LineChart& chart, const Series& series, const Axes& axes) {
  if (series.line) svg.polyline(points_of(axes, series.x, series.y), "line " + series.style);
  if (!series.markers) return;
  const double radius = series.x.size() > kManyPoints ? 2 : 3.2;
  for (std::size_t i = 0; i < series.x.size(); ++i) {
    if (!axes.y.shows(series.y[i])) continue;
    svg.marker(series.marker, {axes.x(series.x[i]), axes.y(series.y[i])}, radius,
               "dot " + series.style, tip_of(chart, series, i));
  }
}

bool has_points(const LineChart& chart) {
  return std::ranges::any_of(chart.series, [](const Series& series) { return !series.x.empty(); });
}

std::string draw_one(const LineChart& chart, const Axes& axes) {
  Svg svg(kWidth, kHeight, fmt::format("{}: {} by {}", chart.title, chart.y_label, chart.x_label));
  draw_frame(svg, chart, axes);
  draw_legend(svg, chart);
  for (const Series& series : chart.series) draw_band(svg, series, axes);
  for (const Series& series : chart.series) draw_series(svg, chart, series, axes);
  if (!has_points(chart)) {
    svg.text({(kLeft + kRight) / 2, (kTop + kBottom) / 2}, Anchor::kMiddle, "label",
             "nothing was measured");
  }
  return svg.str();
}

}  // namespace

std::vector<std::string> draw(std::span<const LineChart> charts) {
  std::vector<std::string> result;
  if (charts.empty()) return result;
  const Scale y = y_axis(charts);
  for (const LineChart& chart : charts) result.push_back(draw_one(chart, {x_axis(chart), y}));
  return result;
}

}  // namespace kvq
