// Scales, primitives and the two kinds of charts.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "kvq/report/heat_map.h"
#include "kvq/report/line_chart.h"
#include "kvq/report/scale.h"
#include "kvq/report/svg.h"

namespace kvq {
namespace {

std::size_t count(std::string_view text, std::string_view part) {
  std::size_t found = 0;
  for (std::size_t at = text.find(part); at != std::string_view::npos;
       at = text.find(part, at + 1)) {
    ++found;
  }
  return found;
}

std::vector<std::string> labels(const Scale& scale, int ticks) {
  std::vector<std::string> result;
  for (const Tick& tick : scale.ticks(ticks)) result.push_back(tick.label);
  return result;
}

Scale make_scale(bool logarithmic, std::initializer_list<double> values) {
  Domain domain{.logarithmic = logarithmic};
  for (const double value : values) domain.include(value);
  return {domain, 0, 100};
}

using Labels = std::vector<std::string>;

TEST(ScaleTest, LinearAxesBeginAtZeroAndEndRound) {
  EXPECT_EQ(labels(make_scale(false, {0.7, 3.9}), 5), (Labels{"0", "1", "2", "3", "4"}));
  EXPECT_EQ(labels(make_scale(false, {-2, 35}), 5), (Labels{"-10", "0", "10", "20", "30", "40"}));
  EXPECT_EQ(labels(make_scale(false, {}), 5), labels(make_scale(false, {0, 1}), 5));
  const Scale scale = make_scale(false, {0, 4});
  EXPECT_DOUBLE_EQ(scale(1), 25);
}

TEST(ScaleTest, LogarithmicAxesEndAtPowersOfTen) {
  const Scale scale = make_scale(true, {0, -1, 0.02, 30, std::nan("")});
  EXPECT_EQ(labels(scale, 5), (Labels{"0.01", "0.1", "1", "10", "100"}));
  EXPECT_DOUBLE_EQ(scale(0.1), 25);
  EXPECT_FALSE(scale.shows(0));
  EXPECT_FALSE(scale.shows(std::numeric_limits<double>::infinity()));
  EXPECT_EQ(labels(make_scale(true, {1e-9, 1}), 5),
            (Labels{"1e-9", "1e-7", "1e-5", "0.001", "0.1"}));
  EXPECT_EQ(labels(make_scale(true, {1}), 5), (Labels{"1", "10"}));
}

TEST(ScaleTest, IndexTicks) {
  EXPECT_EQ(index_ticks(0, 8).size(), 0U);
  EXPECT_EQ(index_ticks(8, 8).size(), 8U);
  EXPECT_EQ(index_ticks(80, 8).size(), 8U);
  EXPECT_EQ(index_ticks(80, 8)[1].label, "10");
}

TEST(ScaleTest, ShortNumbers) {
  EXPECT_EQ(short_number(0), "0");
  EXPECT_EQ(short_number(0.00870), "0.0087");
  EXPECT_EQ(short_number(12.3456), "12.35");
  EXPECT_EQ(short_number(123456), "123456");
  EXPECT_EQ(short_number(3.456e-7), "3.5e-07");
  EXPECT_EQ(short_number(-2.5, 2), "-2.5");
  EXPECT_EQ(short_number(std::nan("")), "–");
}

TEST(SvgTest, TextIsEscaped) {
  EXPECT_EQ(escape("a<b & \"c\">"), "a&lt;b &amp; &quot;c&quot;&gt;");
  Svg svg(10, 10, "\"x\"");
  svg.rect({0, 0}, 1, 1, "cell", "<&>");
  svg.text({1, 2.25}, Anchor::kEnd, "tick", "1 < 2");
  const std::string text = svg.str();
  EXPECT_NE(text.find("aria-label=\"&quot;x&quot;\""), std::string::npos);
  EXPECT_NE(text.find("data-tip=\"&lt;&amp;&gt;\""), std::string::npos);
  EXPECT_NE(text.find("y=\"2.2\" text-anchor=\"end\">1 &lt; 2</text>"), std::string::npos);
}

LineChart chart_of(int points) {
  Series series{.name = "keys", .style = "key"};
  for (int i = 0; i < points; ++i) {
    series.x.push_back(i);
    series.y.push_back(i + 1);
    series.low.push_back(i + 0.5);
    series.high.push_back(i + 2);
  }
  return {.title = "t", .x_label = "layer", .y_label = "size", .series = {series}};
}

TEST(LineChartTest, MarksFollowTheData) {
  for (const int points : {1, 2, 80}) {
    const LineChart chart = chart_of(points);
    const std::string text = draw({&chart, 1}).front();
    EXPECT_EQ(count(text, "<circle"), static_cast<std::size_t>(points) + 1) << "one in the legend";
    EXPECT_EQ(count(text, "class=\"band key\""), points > 1 ? 1U : 0U);
    EXPECT_EQ(count(text, "class=\"line key\""), points > 1 ? 2U : 1U);
    EXPECT_EQ(count(text, "nan"), 0U);
  }
  const LineChart chart = chart_of(3);
  EXPECT_NE(draw({&chart, 1}).front().find("data-tip=\"layer 2: keys 3 (2.5 to 4)\""),
            std::string::npos);
}

TEST(LineChartTest, NothingMeasuredIsSaid) {
  EXPECT_TRUE(draw(std::span<const LineChart>{}).empty());
  const LineChart chart = chart_of(0);
  EXPECT_EQ(count(draw({&chart, 1}).front(), "nothing was measured"), 1U);
}

TEST(LineChartTest, LogarithmsOfZeroAreLeftOut) {
  LineChart chart = chart_of(3);
  chart.log_y = true;
  chart.series[0].y = {0, 1, 10};
  const std::string text = draw({&chart, 1}).front();
  EXPECT_EQ(count(text, "<circle"), 3U);
  EXPECT_EQ(count(text, "inf"), 0U);
}

TEST(LineChartTest, ChartsShareTheirVerticalAxis) {
  LineChart low = chart_of(2);
  LineChart high = chart_of(2);
  high.series[0].y = {500, 900};
  const std::vector<LineChart> charts = {low, high};
  const std::vector<std::string> drawn = draw(charts);
  ASSERT_EQ(drawn.size(), 2U);
  for (const std::string& text : drawn) EXPECT_EQ(count(text, ">1000</text>"), 1U);
}

TEST(HeatMapTest, StepsRiseWithTheDamage) {
  EXPECT_EQ(colour_step(divergence_steps(), -1e-7), 0);
  EXPECT_EQ(colour_step(divergence_steps(), 0.01), 5);
  EXPECT_EQ(colour_step(divergence_steps(), 5), 8);
  EXPECT_EQ(colour_step(agreement_steps(), 100), 0);
  EXPECT_EQ(colour_step(agreement_steps(), 99.8), 0);
  EXPECT_EQ(colour_step(agreement_steps(), 97.5), 4);
  EXPECT_EQ(colour_step(agreement_steps(), 10), 8);
  for (const ColourSteps* steps :
       {&divergence_steps(), &agreement_steps(), &relative_error_steps()}) {
    EXPECT_EQ(steps->limits.size(), 8U);
    EXPECT_EQ(steps->texts.size(), 8U);
  }
}

TEST(HeatMapTest, CellsCarryTextWhereTheyAreWide) {
  for (const int columns : {0, 1, 6, 80}) {
    HeatMap map{.title = "t", .row_label = "r", .column_label = "c", .rows = {"a", "b"}};
    map.steps = &divergence_steps();
    map.cells.resize(2);
    for (int i = 0; i < columns; ++i) {
      map.columns.push_back(std::to_string(i));
      map.cells[0].push_back(HeatCell{.value = 0.02, .text = "number", .tip = "tip"});
      map.cells[1].push_back(std::nullopt);
    }
    const std::string text = draw(map);
    const auto cells = static_cast<std::size_t>(columns);
    EXPECT_EQ(count(text, "data-tip=\"tip\""), cells);
    EXPECT_EQ(count(text, "class=\"cell none\""), cells);
    EXPECT_EQ(count(text, ">number<"), columns <= 6 ? cells : 0U);
    EXPECT_EQ(count(text, "class=\"cell h5\""), cells + 1) << "one in the legend";
  }
}

TEST(HeatMapTest, DivergencesHaveTwoDigits) {
  EXPECT_EQ(divergence_text(-1e-8), "<1e-5");
  EXPECT_EQ(divergence_text(0.000042), "4e-5");
  EXPECT_EQ(divergence_text(0.00042), "0.00042");
  EXPECT_EQ(short_divergence_text(0.00042), "4e-4");
  EXPECT_EQ(short_divergence_text(0.0042), "0.0042");
  EXPECT_EQ(divergence_text(0.06), "0.060");
  EXPECT_EQ(divergence_text(0.256), "0.26");
  EXPECT_EQ(divergence_text(3.21), "3.2");
}

}  // namespace
}  // namespace kvq
