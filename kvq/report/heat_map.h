// A table of coloured cells. Colours stand for fixed steps of a quantity, the same on every page,
// so that pages can be compared.
//
//   title
//   r |[  ][  ][  ]      cells wide enough carry their number
//   r |[  ][  ][  ]
//      c   c   c
//      column label
//   [][][][][][]         legend: the steps
#pragma once

#include <optional>
#include <string>
#include <vector>

namespace kvq {

// Eight limits between nine colours, from the page's background to the strongest.
struct ColourSteps {
  std::string label;           // of the legend: the quantity and its unit
  std::vector<double> limits;  // eight; ascending, or descending where small is strong
  // Of the limits; of the nine colours where each stands for one value.
  std::vector<std::string> texts;
};

const ColourSteps& divergence_steps();      // KL divergence, nats
const ColourSteps& agreement_steps();       // same likeliest token, per cent
const ColourSteps& relative_error_steps();  // error / size, per cent

const ColourSteps& width_steps();  // bits of a code

// 0 .. 8
int colour_step(const ColourSteps& steps, double value);

struct HeatCell {
  double value = 0;
  std::string text = {};    // inside the cell
  std::string detail = {};  // smaller, below it; empty for none
  std::string tip = {};
  bool outlined = false;
};

struct HeatMap {
  std::string title = {};
  std::string row_label = {};
  std::string column_label = {};
  std::vector<std::string> rows = {};
  std::vector<std::string> columns = {};
  std::vector<std::vector<std::optional<HeatCell>>> cells =
      {};  // [rows][columns]; null: not measured
  const ColourSteps* steps = nullptr;
};

std::string draw(const HeatMap& map);

// A divergence as cells show it: two significant digits, "<1e-5" for less.
std::string divergence_text(double divergence);
// For narrow cells: six characters at most, one digit below 0.001.
std::string short_divergence_text(double divergence);

}  // namespace kvq
