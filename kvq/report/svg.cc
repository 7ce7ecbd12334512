#include "kvq/report/svg.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <vector>

namespace kvq {
namespace {

// At most one decimal: a tenth of a pixel is enough.
std::string pixels(double value) {
  std::string text = fmt::format("{:.1f}", value);
  if (text.ends_with(".0")) text.resize(text.size() - 2);
  return text == "-0" ? "0" : text;
}

void append_points(std::string& path, std::span<const Point> points) {
  for (const Point& point : points) {
    path += path.empty() ? 'M' : 'L';
    path += pixels(point.x) + ' ' + pixels(point.y);
  }
}

std::string tip_attribute(std::string_view tip) {
  return tip.empty() ? "" : fmt::format(" data-tip=\"{}\"", escape(tip));
}

}  // namespace

std::string escape(std::string_view text) {
  std::string result;
  for (const char c : text) {
    switch (c) {
      case '&':
        result += "&amp;";
        break;
      case '<':
        result += "&lt;";
        break;
      case '>':
        result += "&gt;";
        break;
      case '"':
        result += "&quot;";
        break;
      default:
        result += c;
    }
  }
  return result;
}

Svg::Svg(double width, double height, std::string_view label)
    : body_(fmt::format("<svg viewBox=\"0 0 {} {}\" role=\"img\" aria-label=\"{}\">", pixels(width),
                        pixels(height), escape(label))) {}

void Svg::line(Point from, Point to, std::string_view classes) {
  body_ += fmt::format("<path class=\"{}\" d=\"M{} {}L{} {}\"/>", classes, pixels(from.x),
                       pixels(from.y), pixels(to.x), pixels(to.y));
}

void Svg::rect(Point corner, double width, double height, std::string_view classes,
               std::string_view tip) {
  body_ += fmt::format("<rect class=\"{}\" x=\"{}\" y=\"{}\" width=\"{}\" height=\"{}\"{}/>",
                       classes, pixels(corner.x), pixels(corner.y), pixels(width), pixels(height),
                       tip_attribute(tip));
}

void Svg::text(Point at, Anchor anchor, std::string_view classes, std::string_view content) {
  constexpr std::array kAnchors = {"", " text-anchor=\"middle\"", " text-anchor=\"end\""};
  body_ += fmt::format("<text class=\"{}\" x=\"{}\" y=\"{}\"{}>{}</text>", classes, pixels(at.x),
                       pixels(at.y), kAnchors[static_cast<std::size_t>(anchor)], escape(content));
}

void Svg::vertical_text(Point at, std::string_view classes, std::string_view content) {
  body_ += fmt::format(
      "<text class=\"{}\" transform=\"translate({} {}) rotate(-90)\" text-anchor=\"middle\">{}"
      "</text>",
      classes, pixels(at.x), pixels(at.y), escape(content));
}

void Svg::polyline(std::span<const Point> points, std::string_view classes) {
  if (points.size() < 2) return;
  std::string path;
  append_points(path, points);
  body_ += fmt::format("<path class=\"{}\" d=\"{}\"/>", classes, path);
}

void Svg::band(std::span<const Point> low, std::span<const Point> high, std::string_view classes) {
  if (low.size() < 2) return;
  std::string path;
  append_points(path, high);
  std::vector<Point> back(low.rbegin(), low.rend());
  append_points(path, back);
  body_ += fmt::format("<path class=\"{}\" d=\"{}Z\"/>", classes, path);
}

void Svg::marker(Marker shape, Point center, double radius, std::string_view classes,
                 std::string_view tip) {
  if (shape == Marker::kCircle) {
    body_ += fmt::format("<circle class=\"{}\" cx=\"{}\" cy=\"{}\" r=\"{}\"{}/>", classes,
                         pixels(center.x), pixels(center.y), pixels(radius), tip_attribute(tip));
    return;
  }
  std::string path;
  const auto corner = [&](double x, double y) {
    const Point point{center.x + x * radius, center.y + y * radius};
    append_points(path, {&point, 1});
  };
  if (shape == Marker::kSquare) {
    for (const auto& [x, y] : {Point{-.9, -.9}, {.9, -.9}, {.9, .9}, {-.9, .9}}) corner(x, y);
  } else if (shape == Marker::kDiamond) {
    for (const auto& [x, y] : {Point{0, -1.3}, {1.3, 0}, {0, 1.3}, {-1.3, 0}}) corner(x, y);
  } else {
    for (const auto& [x, y] : {Point{0, -1.2}, {1.2, 1}, {-1.2, 1}}) corner(x, y);
  }
  body_ += fmt::format("<path class=\"{}\" d=\"{}Z\"{}/>", classes, path, tip_attribute(tip));
}

}  // namespace kvq
