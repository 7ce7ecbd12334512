#include "kvq/report/heat_map.h"

#include <fmt/format.h>

#include <algorithm>

#include "kvq/report/scale.h"
#include "kvq/report/svg.h"

namespace kvq {
namespace {

constexpr double kWidth = 360;
constexpr double kTop = 24;
constexpr double kRight = 352;
constexpr double kCharacter = 6.4;
constexpr double kTextWidth = 30;    // cells at least this wide carry text
constexpr double kColumnLabel = 26;  // room that a column's label needs
constexpr int kDarkStep = 5;         // from here on text stands on a strong colour

struct Layout {
  double left;
  double cell_width;
  double cell_height;
  double bottom;
};

Layout layout_of(const HeatMap& map) {
  std::size_t longest = 0;
  for (const std::string& row : map.rows) longest = std::max(longest, row.size());
  Layout layout{};
  layout.left = 24 + kCharacter * static_cast<double>(longest);
  layout.cell_width =
      (kRight - layout.left) / std::max<double>(1, static_cast<double>(map.columns.size()));
  bool details = false;
  for (const auto& row : map.cells) {
    for (const auto& cell : row) details = details || (cell && !cell->detail.empty());
  }
  layout.cell_height = details ? 38 : layout.cell_width < kTextWidth ? 22 : 30;
  layout.bottom = kTop + layout.cell_height * static_cast<double>(map.rows.size());
  return layout;
}

void draw_cell(Svg& svg, const Layout& layout, const HeatMap& map, std::size_t row,
               std::size_t column) {
  const double x = layout.left + layout.cell_width * static_cast<double>(column);
  const double y = kTop + layout.cell_height * static_cast<double>(row);
  // A gap where cells are wide, the bare grid where they are many.
  const double gap = layout.cell_width < 8 ? 0 : 1;
  const double width = layout.cell_width - gap;
  const double height = layout.cell_height - 1;
  const std::optional<HeatCell>& cell = map.cells[row][column];
  if (!cell) {
    svg.rect({x, y}, width, height, "cell none");
    return;
  }
  const int step = colour_step(*map.steps, cell->value);
  svg.rect({x, y}, width, height, fmt::format("cell h{}", step), cell->tip);
  if (cell->outlined) svg.rect({x + 1, y + 1}, width - 2, height - 2, "outline");
  if (layout.cell_width < kTextWidth) return;
  const std::string classes = step < kDarkStep ? "number weak" : "number strong";
  const double center = x + width / 2;
  const double middle = y + height / 2;
  if (cell->detail.empty()) {
    svg.text({center, middle + 4}, Anchor::kMiddle, classes, cell->text);
  } else {
    svg.text({center, middle - 2}, Anchor::kMiddle, classes, cell->text);
    svg.text({center, middle + 11}, Anchor::kMiddle, classes + " detail", cell->detail);
  }
}

void draw_labels(Svg& svg, const Layout& layout, const HeatMap& map) {
  svg.text({0, 13}, Anchor::kStart, "title", map.title);
  for (std::size_t row = 0; row < map.rows.size(); ++row) {
    const double y = kTop + layout.cell_height * (static_cast<double>(row) + 0.5);
    svg.text({layout.left - 5, y + 4}, Anchor::kEnd, "tick", map.rows[row]);
  }
  const auto columns = static_cast<int>(map.columns.size());
  const int most = static_cast<int>((kRight - layout.left) / kColumnLabel);
  for (const Tick& tick : index_ticks(columns, most)) {
    const double x = layout.left + layout.cell_width * (tick.value + 0.5);
    svg.text({x, layout.bottom + 14}, Anchor::kMiddle, "tick",
             map.columns[static_cast<std::size_t>(tick.value)]);
  }
  svg.text({(layout.left + kRight) / 2, layout.bottom + 31}, Anchor::kMiddle, "label",
           map.column_label);
  svg.vertical_text({11, (kTop + layout.bottom) / 2}, "label", map.row_label);
}

void draw_legend(Svg& svg, double top, const ColourSteps& steps) {
  constexpr double kLegendLeft = 24;
  const bool values = steps.texts.size() > steps.limits.size();
  const auto colours = static_cast<double>(steps.limits.size() + 1);
  const double width = (kRight - kLegendLeft) / colours;
  svg.text({kLegendLeft, top}, Anchor::kStart, "key-text", steps.label);
  for (std::size_t step = 0; step <= steps.limits.size(); ++step) {
    const double x = kLegendLeft + width * static_cast<double>(step);
    svg.rect({x, top + 6}, width, 9, fmt::format("cell h{}", step));
    if (values) {
      svg.text({x + width / 2, top + 27}, Anchor::kMiddle, "tick", steps.texts[step]);
    } else if (step > 0) {
      svg.text({x, top + 27}, Anchor::kMiddle, "tick", steps.texts[step - 1]);
    }
  }
}

// "4e-5"
std::string power_text(double number) {
  std::string text = fmt::format("{:.0e}", number);
  text.erase(text.find('-') + 1, 1);
  return text;
}

}  // namespace

const ColourSteps& divergence_steps() {
  static const ColourSteps kSteps = {"KL divergence from a 16-bit cache, nats a token",
                                     {1e-5, 1e-4, 1e-3, 0.003, 0.01, 0.03, 0.1, 0.3},
                                     {"1e-5", "1e-4", ".001", ".003", ".01", ".03", ".1", ".3"}};
  return kSteps;
}

const ColourSteps& agreement_steps() {
  static const ColourSteps kSteps = {"Same likeliest token as with a 16-bit cache, %",
                                     {99.8, 99.5, 99, 98, 97, 95, 90, 80},
                                     {"99.8", "99.5", "99", "98", "97", "95", "90", "80"}};
  return kSteps;
}

const ColourSteps& relative_error_steps() {
  static const ColourSteps kSteps = {"Error relative to the size of the numbers, %",
                                     {0.5, 1, 2, 4, 8, 12, 20, 40},
                                     {"0.5", "1", "2", "4", "8", "12", "20", "40"}};
  return kSteps;
}

const ColourSteps& width_steps() {
  static const ColourSteps kSteps = {"Bits of a code",
                                     {1.3, 1.8, 2.5, 3.5, 4.5, 5.5, 7, 9},
                                     {"1", "1.6", "2", "3", "4", "5", "6", "8", "16"}};
  return kSteps;
}

int colour_step(const ColourSteps& steps, double value) {
  const bool descending = steps.limits.front() > steps.limits.back();
  return static_cast<int>(std::ranges::count_if(
      steps.limits, [&](double limit) { return descending ? value < limit : value >= limit; }));
}

std::string draw(const HeatMap& map) {
  const Layout layout = layout_of(map);
  Svg svg(kWidth, layout.bottom + 82,
          fmt::format("{}: {} by {}", map.title, map.row_label, map.column_label));
  draw_labels(svg, layout, map);
  for (std::size_t row = 0; row < map.rows.size(); ++row) {
    for (std::size_t column = 0; column < map.columns.size(); ++column) {
      draw_cell(svg, layout, map, row, column);
    }
  }
  draw_legend(svg, layout.bottom + 52, *map.steps);
  return svg.str();
}

std::string short_divergence_text(double divergence) {
  return divergence < 1e-5 || divergence >= 1e-3 ? divergence_text(divergence)
                                                 : power_text(divergence);
}

std::string divergence_text(double divergence) {
  if (divergence < 1e-5) return "<1e-5";
  if (divergence < 1e-4) return power_text(divergence);
  if (divergence >= 0.995) return fmt::format("{:.1f}", divergence);
  const int decimals = divergence < 1e-3 ? 5 : divergence < 0.01 ? 4 : divergence < 0.1 ? 3 : 2;
  return fmt::format("{:.{}f}", divergence, decimals);
}

}  // namespace kvq
