// From numbers to pixels, and the numbers that an axis names.
#pragma once

#include <string>
#include <vector>

namespace kvq {

// Four significant digits at most, no trailing zeros: "0.0087", "12.4", "1,200", "3e-07".
std::string short_number(double value);
// Likewise with `digits` significant digits.
std::string short_number(double value, int digits);

struct Tick {
  double value;
  std::string label;
};

// The least interval of all numbers seen; on a logarithmic axis only numbers above 0 count.
struct Domain {
  bool logarithmic = false;
  bool empty = true;
  double low = 0;
  double high = 0;

  void include(double value);
};

// Maps [low, high] to pixels [from, to]; numbers outside map outside.
class Scale {
 public:
  // Widens the domain to round numbers. A linear domain starts at 0 unless it has negative numbers.
  Scale(const Domain& domain, double from, double to);
  // Exactly [low, high].
  static Scale exact(double low, double high, double from, double to);

  double operator()(double value) const;
  // Whether a value has a place: above 0 on a logarithmic axis, and finite.
  bool shows(double value) const;
  // About `count` of them, ends included where they are round.
  std::vector<Tick> ticks(int count) const;

 private:
  Scale() = default;
  double position(double value) const;  // in [0, 1]

  bool logarithmic_ = false;
  double low_ = 0;
  double high_ = 1;
  double step_ = 0;  // between the round numbers of a linear axis; 0 where its ends are not round
  double from_ = 0;
  double to_ = 1;
};

// Ticks at whole numbers 0 .. count - 1, at most `most` of them.
std::vector<Tick> index_ticks(int count, int most);

}  // namespace kvq
