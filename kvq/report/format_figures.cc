// Figures over cache formats: divergence against bits, widths, rotation, group sizes.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "kvq/report/figures.h"
#include "kvq/report/heat_map.h"
#include "kvq/report/line_chart.h"

namespace kvq {
namespace {

// Divergences below it are the rounding of float32: the logarithmic axis ends here.
constexpr double kLeastDivergence = 1e-6;

std::string format_tip(const MeasuredFormat& format) {
  return fmt::format("{}: {} bits, KL {}, top-1 {} %", format.name,
                     short_number(format.effective_bits), divergence_text(format.kl),
                     short_number(100 * format.top1, 3));
}

LineChart widths_chart(const Run& run) {
  LineChart chart = quality_chart(titled(run, "Widths of keys and values"));
  Series more_keys{.name = "K > V", .style = "key", .marker = Marker::kCircle, .line = false};
  Series equal{.name = "K = V", .style = "equal", .marker = Marker::kDiamond, .line = false};
  Series more_values{.name = "K < V", .style = "value", .marker = Marker::kSquare, .line = false};
  const MeasuredGrid& grid = run.document.widths;
  for (std::size_t row = 0; row < grid.cells.size(); ++row) {
    for (std::size_t column = 0; column < grid.columns.size(); ++column) {
      Series& series = row > column ? more_keys : row < column ? more_values : equal;
      add_point(series, *run.document.find_format(grid.cells[row][column]));
    }
  }
  chart.series = {front_series(run.document, "best", "front"), std::move(more_keys),
                  std::move(equal), std::move(more_values)};
  return chart;
}

LineChart comparison_chart(std::span<const Run> runs) {
  constexpr int kStyles = 6;
  constexpr Marker kMarkers[] = {Marker::kCircle, Marker::kSquare, Marker::kDiamond,
                                 Marker::kTriangle};
  LineChart chart = quality_chart("Best measured formats of each run");
  for (std::size_t i = 0; i < runs.size(); ++i) {
    Series front = front_series(runs[i].document, runs[i].label, fmt::format("run{}", i % kStyles));
    front.markers = true;
    front.marker = kMarkers[i % std::size(kMarkers)];
    chart.series.push_back(std::move(front));
  }
  return chart;
}

enum class Quantity : std::uint8_t { kDivergence, kAgreement };

HeatMap grid_map(const Run& run, const MeasuredGrid& grid, const std::string& title,
                 Quantity quantity, bool with_bits) {
  const bool divergence = quantity == Quantity::kDivergence;
  HeatMap map{.title = titled(run, title),
              .rows = grid.rows,
              .columns = grid.columns,
              .steps = divergence ? &divergence_steps() : &agreement_steps()};
  for (const auto& names : grid.cells) {
    auto& row = map.cells.emplace_back();
    for (const std::string& name : names) {
      const MeasuredFormat& format = *run.document.find_format(name);
      const double value = divergence ? format.kl : 100 * format.top1;
      row.push_back(
          HeatCell{.value = value,
                   .text = divergence ? divergence_text(value) : fmt::format("{:.1f}", value),
                   .detail = with_bits ? short_number(format.effective_bits) + " bits" : "",
                   .tip = format_tip(format),
                   .outlined = name == grid.base});
    }
  }
  return map;
}

void add_rows(const Run& run, const MeasuredGrid& grid, DataTable& table) {
  table.header = {"format", "bits a number", "cache size", "perplexity", "KL, nats", "top-1"};
  for (const auto& names : grid.cells) {
    for (const std::string& name : names) {
      const MeasuredFormat& format = *run.document.find_format(name);
      table.rows.push_back({titled(run, name), short_number(format.effective_bits),
                            short_number(100 * format.cache_share, 3) + " %",
                            fmt::format("{:.3f}", std::exp(format.nll)),
                            fmt::format("{:.6f}", format.kl),
                            fmt::format("{:.2f} %", 100 * format.top1)});
    }
  }
}

}  // namespace

void add_point(Series& series, const MeasuredFormat& format) {
  series.x.push_back(format.effective_bits);
  series.y.push_back(std::max(format.kl, kLeastDivergence));
  series.tips.push_back(format_tip(format));
}

Series front_series(const Document& document, std::string name, std::string style) {
  Series front{.name = std::move(name), .style = std::move(style), .markers = false};
  for (const MeasuredFormat* format : pareto_front(document)) add_point(front, *format);
  return front;
}

LineChart quality_chart(const std::string& title) {
  return {.title = title,
          .x_label = "stored bits a number",
          .y_label = "KL divergence, nats a token",
          .log_y = true};
}

std::vector<const MeasuredFormat*> pareto_front(const Document& document) {
  std::vector<const MeasuredFormat*> sorted;
  sorted.reserve(document.formats.size());
  for (const MeasuredFormat& format : document.formats) sorted.push_back(&format);
  std::ranges::sort(sorted, [](const MeasuredFormat* a, const MeasuredFormat* b) {
    return std::pair(a->effective_bits, a->kl) < std::pair(b->effective_bits, b->kl);
  });
  std::vector<const MeasuredFormat*> front;
  for (const MeasuredFormat* format : sorted) {
    if (front.empty() || format->kl < front.back()->kl) front.push_back(format);
  }
  return front;
}

Figure quality_figure(std::span<const Run> runs) {
  Figure figure{.id = "quality",
                .title = "Divergence against stored bits",
                .short_title = "Quality",
                .caption =
                    "Each point is a pair of widths. The line joins the best of all "
                    "measured formats, other group sizes and rotations included: nothing "
                    "measured lies below it. Bits count everything stored: codes, scales, "
                    "padding. Divergences below 1e-6 are drawn there.",
                .commands = commands_of(runs),
                .table = {{"best format", "bits a number", "cache size", "KL, nats", "top-1"}, {}}};
  std::vector<LineChart> charts;
  for (const Run& run : runs) {
    charts.push_back(widths_chart(run));
    for (const MeasuredFormat* format : pareto_front(run.document)) {
      figure.table.rows.push_back({titled(run, format->name), short_number(format->effective_bits),
                                   short_number(100 * format->cache_share, 3) + " %",
                                   fmt::format("{:.6f}", format->kl),
                                   fmt::format("{:.2f} %", 100 * format->top1)});
    }
  }
  if (runs.size() > 1) charts.insert(charts.begin(), comparison_chart(runs));
  figure.panels = draw(charts);
  return figure;
}

Figure width_figure(std::span<const Run> runs) {
  Figure figure{.id = "widths",
                .title = "Bits of keys against bits of values",
                .short_title = "Widths",
                .caption =
                    "What every pair of widths does to the next-token distribution. Cells "
                    "mirrored at the diagonal take the same bytes; where the lower left is "
                    "paler than the upper right, bits are worth more in keys. The outlined "
                    "cell is the base format.",
                .commands = commands_of(runs)};
  for (const Run& run : runs) {
    HeatMap divergence = grid_map(run, run.document.widths, "KL divergence", Quantity::kDivergence,
                                  /*with_bits=*/false);
    HeatMap agreement = grid_map(run, run.document.widths, "Same likeliest token, %",
                                 Quantity::kAgreement, /*with_bits=*/false);
    for (HeatMap* map : {&divergence, &agreement}) {
      map->row_label = "bits of keys";
      map->column_label = "bits of values";
      figure.panels.push_back(draw(*map));
    }
    add_rows(run, run.document.widths, figure.table);
  }
  return figure;
}

Figure rotation_figure(std::span<const Run> runs) {
  Figure figure{.id = "rotation",
                .title = "Hadamard rotation of keys and values",
                .short_title = "Rotation",
                .caption =
                    "The rotation spreads outliers over all channels of a head before "
                    "packing; queries and outputs are rotated to match, so that nothing else "
                    "changes. It takes no bytes.",
                .commands = commands_of(runs)};
  for (const Run& run : runs) {
    HeatMap map = grid_map(run, run.document.rotations, "KL divergence", Quantity::kDivergence,
                           /*with_bits=*/false);
    map.row_label = "widths";
    map.column_label = "what is rotated";
    figure.panels.push_back(draw(map));
    add_rows(run, run.document.rotations, figure.table);
  }
  return figure;
}

Figure group_figure(std::span<const Run> runs) {
  Figure figure{.id = "groups",
                .title = "Group sizes of keys and values",
                .short_title = "Groups",
                .caption =
                    "Numbers of a group share a scale: small groups follow the data, large "
                    "ones save bits. The second line of a cell is what the format stores, "
                    "scales included; compare cells of equal bits. The outlined cell is the "
                    "base format.",
                .commands = commands_of(runs)};
  for (const Run& run : runs) {
    HeatMap map = grid_map(run, run.document.groups,
                           fmt::format("KL divergence of {}", run.document.groups.base),
                           Quantity::kDivergence, /*with_bits=*/true);
    map.row_label = "group of keys";
    map.column_label = "group of values";
    figure.panels.push_back(draw(map));
    add_rows(run, run.document.groups, figure.table);
  }
  return figure;
}

}  // namespace kvq
