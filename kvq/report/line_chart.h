// Lines, bands and points over two axes.
//
//   title                        360 x 250; text of 11 pixels, so that the chart is
//   -- K  -- V         legend    read without zooming on a telephone of that width
//   y |
//     |  lines
//     +------------- x
//        x label
#pragma once

#include <span>
#include <string>
#include <vector>

#include "kvq/report/scale.h"
#include "kvq/report/svg.h"

namespace kvq {

struct Series {
  std::string name = {};   // in the legend
  std::string style = {};  // class of the style sheet: "key", "value", "run0", ...
  Marker marker = Marker::kCircle;
  bool line = true;
  bool markers = true;
  std::vector<double> x = {};
  std::vector<double> y = {};          // as many as x; what the axis cannot show is left out
  std::vector<double> low = {};        // edge of a band; empty for none
  std::vector<double> high = {};       // likewise
  std::vector<std::string> tips = {};  // of each point; empty: "name: y at x"
};

struct LineChart {
  std::string title = {};
  std::string x_label = {};
  std::string y_label = {};  // with the unit
  bool log_y = false;
  std::vector<Tick> x_ticks = {};  // empty: round numbers
  std::vector<Series> series = {};
};

// Charts that are drawn side by side share their y axis.
std::vector<std::string> draw(std::span<const LineChart> charts);

}  // namespace kvq
