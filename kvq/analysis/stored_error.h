// How far packed keys and values are from the 16-bit ones.
#pragma once

#include <memory>
#include <span>
#include <vector>

#include "kvq/base/cpu.h"
#include "kvq/base/half.h"
#include "kvq/codec/pack.h"

namespace kvq {

struct StoredError {
  double mean_squared_error = 0;
  double relative_error = 0;  // ||x - y|| / ||x||; 0 where x is zero
};

// Sums over pages that become one StoredError.
class ErrorSum {
 public:
  // original, stored  [count]
  void add(const float* original, const float* stored, std::size_t count);
  void add(const ErrorSum& other);
  StoredError error() const;

 private:
  double error_square_ = 0;
  double original_square_ = 0;
  double count_ = 0;
};

struct PageErrors {
  std::vector<ErrorSum> key;    // of each format
  std::vector<ErrorSum> value;  // of each format

  explicit PageErrors(std::size_t formats) : key(formats), value(formats) {}
};

// Packs one page of one kv head in every format, unpacks it and adds the differences.
//   key, value  [64 tokens, head_dim], finite
void add_page(std::span<const PageFormat> formats, const Half* key, const Half* value, Isa isa,
              PageErrors& errors);

}  // namespace kvq
