#include "kvq/analysis/format_grid.h"

#include <algorithm>
#include <array>
#include <utility>

namespace kvq {
namespace {

constexpr std::array kGroups = {16, 32, 64, 128, 256};
constexpr std::array<std::pair<Bits, Bits>, 4> kRotatedWidths = {{
    {Bits::k4, Bits::k4},
    {Bits::k4, Bits::k2},
    {Bits::k3, Bits::k3},
    {Bits::k2, Bits::k2},
}};

}  // namespace

FormatGrid width_grid(const LayerSpec& base, std::span<const Bits> widths) {
  FormatGrid grid;
  for (const Bits key : widths) {
    grid.rows.push_back(fmt::format("K{}", name(key)));
    grid.columns.push_back(fmt::format("V{}", name(key)));
    std::vector<LayerSpec>& row = grid.cells.emplace_back();
    for (const Bits value : widths) {
      LayerSpec spec = base;
      spec.key.bits = key;
      spec.value.bits = value;
      row.push_back(spec);
    }
  }
  return grid;
}

FormatGrid rotation_grid(const LayerSpec& base) {
  FormatGrid grid{{}, {"none", "keys", "values", "both"}, {}};
  for (const auto& [key_bits, value_bits] : kRotatedWidths) {
    grid.rows.push_back(fmt::format("K{}V{}", name(key_bits), name(value_bits)));
    std::vector<LayerSpec>& row = grid.cells.emplace_back();
    for (int rotated = 0; rotated < 4; ++rotated) {
      LayerSpec spec = base;
      spec.key.bits = key_bits;
      spec.value.bits = value_bits;
      spec.key.rotation = rotated % 2 == 1 ? Rotation::kHadamard : Rotation::kNone;
      spec.value.rotation = rotated / 2 == 1 ? Rotation::kHadamard : Rotation::kNone;
      row.push_back(spec);
    }
  }
  return grid;
}

FormatGrid group_grid(const LayerSpec& base) {
  FormatGrid grid;
  for (const int key_group : kGroups) {
    grid.rows.push_back(fmt::format("K g{}", key_group));
    grid.columns.push_back(fmt::format("V g{}", key_group));
    std::vector<LayerSpec>& row = grid.cells.emplace_back();
    for (const int value_group : kGroups) {
      LayerSpec spec = base;
      spec.key.group = key_group;
      spec.value.group = value_group;
      row.push_back(spec);
    }
  }
  return grid;
}

std::vector<LayerSpec> distinct_formats(const LayerSpec& base, std::span<const FormatGrid> grids) {
  std::vector<LayerSpec> formats = {base};
  for (const FormatGrid& grid : grids) {
    for (const auto& row : grid.cells) {
      for (const LayerSpec& spec : row) {
        if (std::ranges::find(formats, spec) == formats.end()) formats.push_back(spec);
      }
    }
  }
  return formats;
}

}  // namespace kvq
