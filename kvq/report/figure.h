// A figure of the page: drawings side by side, a caption, and behind them the numbers.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "kvq/report/document.h"

namespace kvq {

// One measurement among those that a page compares.
struct Run {
  std::string label;  // "A", "B", ...; empty where it is the only one
  Document document;
};

struct DataTable {
  std::vector<std::string> header = {};
  std::vector<std::vector<std::string>>
      rows;  // as long as the header; the first cell names the row
};

struct Figure {
  std::string id = {};  // of the HTML element
  std::string title = {};
  std::string short_title = {};            // in the page's list of figures
  std::string caption = {};                // plain text: what was measured, how to read it
  std::vector<std::string> commands = {};  // that measured it
  std::vector<std::string> panels = {};    // SVG
  std::vector<std::string> more = {};      // SVG that unfolds; may be empty
  std::string more_title = {};
  DataTable table = {};
};

std::string to_html(const DataTable& table);
std::string to_html(const Figure& figure);

// "A: title", or the title alone for the only run.
std::string titled(const Run& run, const std::string& title);
std::vector<std::string> commands_of(std::span<const Run> runs);

}  // namespace kvq
