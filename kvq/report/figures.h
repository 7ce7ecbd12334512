// The figures of a page, each for one or several runs.
#pragma once

#include <optional>
#include <span>

#include "kvq/report/figure.h"
#include "kvq/report/line_chart.h"

namespace kvq {

// What the layers' keys and values are like (layer_figures.cc, spectrum_figure.cc).
std::optional<Figure> weight_norm_figure(std::span<const Run> runs);  // null where no run has norms
Figure activation_figure(std::span<const Run> runs);
Figure spectrum_figure(std::span<const Run> runs);
Figure error_figure(std::span<const Run> runs);

// What formats do to predictions (format_figures.cc).
Figure quality_figure(std::span<const Run> runs);  // divergence against bits
Figure width_figure(std::span<const Run> runs);
Figure rotation_figure(std::span<const Run> runs);
Figure group_figure(std::span<const Run> runs);

// What layers need (plan_figures.cc); null where no run has measured it.
std::optional<Figure> sensitivity_figure(std::span<const Run> runs);
std::optional<Figure> plan_figure(std::span<const Run> runs);

// Formats that no other measured one beats in both bits and divergence, fewest bits first.
std::vector<const MeasuredFormat*> pareto_front(const Document& document);

// A point of a chart of divergence against bits.
void add_point(Series& series, const MeasuredFormat& format);
LineChart quality_chart(const std::string& title);
Series front_series(const Document& document, std::string name, std::string style);

}  // namespace kvq
