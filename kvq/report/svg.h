// Primitives of an inline SVG. Colours, fonts and widths of lines are those of the page's style
// sheet: elements carry classes only.
#pragma once

#include <span>
#include <string>
#include <string_view>

namespace kvq {

// Text for HTML and for attributes in double quotes.
std::string escape(std::string_view text);

struct Point {
  double x;
  double y;
};

enum class Anchor { kStart, kMiddle, kEnd };
enum class Marker { kCircle, kSquare, kDiamond, kTriangle };

class Svg {
 public:
  // `label`: what it shows, for screen readers.
  Svg(double width, double height, std::string_view label);

  void line(Point from, Point to, std::string_view classes);
  // `tip` is shown where the pointer is; empty for none.
  void rect(Point corner, double width, double height, std::string_view classes,
            std::string_view tip = {});
  void text(Point at, Anchor anchor, std::string_view classes, std::string_view content);
  // Reads from bottom to top.
  void vertical_text(Point at, std::string_view classes, std::string_view content);
  void polyline(std::span<const Point> points, std::string_view classes);
  // Between two lines of equally many points.
  void band(std::span<const Point> low, std::span<const Point> high, std::string_view classes);
  void marker(Marker shape, Point center, double radius, std::string_view classes,
              std::string_view tip = {});

  // The whole element.
  std::string str() const { return body_ + "</svg>"; }

 private:
  std::string body_;
};

}  // namespace kvq
