// Repeated measurements of one quantity.
#pragma once

#include <algorithm>
#include <vector>

namespace kvq {

class Samples {
 public:
  void add(double value) {
    values_.insert(std::upper_bound(values_.begin(), values_.end(), value), value);
  }

  // Of at least one sample.
  double median() const {
    const std::size_t middle = values_.size() / 2;
    return values_.size() % 2 == 1 ? values_[middle] : (values_[middle - 1] + values_[middle]) / 2;
  }
  double smallest() const { return values_.front(); }
  double largest() const { return values_.back(); }

 private:
  std::vector<double> values_;  // ascending
};

}  // namespace kvq
