#include "kvq/analysis/format_grid.h"

#include <gtest/gtest.h>

#include <array>

namespace kvq {
namespace {

LayerSpec spec_of(const char* text) { return parse_layer_spec(text).value(); }

std::vector<std::string> texts(const std::vector<LayerSpec>& specs) {
  std::vector<std::string> result;
  for (const LayerSpec& spec : specs) result.push_back(to_string(spec));
  return result;
}

TEST(FormatGridTest, Widths) {
  constexpr std::array kWidths = {Bits::k2, Bits::k4};
  const FormatGrid grid = width_grid(spec_of("k8:g32,v8"), kWidths);
  EXPECT_EQ(grid.rows, (std::vector<std::string>{"K2", "K4"}));
  EXPECT_EQ(grid.columns, (std::vector<std::string>{"V2", "V4"}));
  ASSERT_EQ(grid.cells.size(), 2U);
  EXPECT_EQ(texts(grid.cells[0]), (std::vector<std::string>{"k2:g32,v2", "k2:g32,v4"}));
  EXPECT_EQ(texts(grid.cells[1]), (std::vector<std::string>{"k4:g32,v2", "k4:g32,v4"}));
}

TEST(FormatGridTest, Rotations) {
  const FormatGrid grid = rotation_grid(spec_of("k4v2"));
  EXPECT_EQ(grid.columns, (std::vector<std::string>{"none", "keys", "values", "both"}));
  ASSERT_EQ(grid.cells.size(), grid.rows.size());
  EXPECT_EQ(grid.rows[1], "K4V2");
  EXPECT_EQ(texts(grid.cells[1]),
            (std::vector<std::string>{"k4:none,v2:none", "k4,v2:none", "k4:none,v2", "k4v2"}));
}

TEST(FormatGridTest, Groups) {
  const FormatGrid grid = group_grid(spec_of("k4v2"));
  ASSERT_EQ(grid.cells.size(), 5U);
  EXPECT_EQ(grid.rows[4], "K g256");
  EXPECT_EQ(to_string(grid.cells[4][0]), "k4:g256,v2:g16");
  EXPECT_EQ(to_string(grid.cells[2][2]), "k4v2");
}

TEST(FormatGridTest, SharedFormatsAreListedOnce) {
  constexpr std::array kWidths = {Bits::k2, Bits::k4};
  const LayerSpec base = spec_of("k4v2");
  const std::array grids = {width_grid(base, kWidths), rotation_grid(base), group_grid(base)};
  const std::vector<LayerSpec> formats = distinct_formats(base, grids);
  // 4 widths; 16 rotations less k4v4, k4v2 and k2v2; 25 groups less k4v2.
  EXPECT_EQ(formats.size(), 4U + 13U + 24U);
  EXPECT_EQ(to_string(formats[0]), "k4v2");
}

}  // namespace
}  // namespace kvq
