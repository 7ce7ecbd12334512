// Tables of formats that differ in two options.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "kvq/codec/spec.h"

namespace kvq {

// Formats by two options: rows by one, columns by the other.
struct FormatGrid {
  std::vector<std::string> rows;
  std::vector<std::string> columns;
  std::vector<std::vector<LayerSpec>> cells;  // [rows][columns]
};

// Every width of keys by every width of values, other options as in `base`.
FormatGrid width_grid(const LayerSpec& base, std::span<const Bits> widths);
// Pairs of widths by what is rotated: none, keys, values, both; other options as in `base`.
FormatGrid rotation_grid(const LayerSpec& base);
// Every group size of keys by every group size of values, other options as in `base`.
FormatGrid group_grid(const LayerSpec& base);

// `base`, then every format of the grids, each once.
std::vector<LayerSpec> distinct_formats(const LayerSpec& base, std::span<const FormatGrid> grids);

}  // namespace kvq
