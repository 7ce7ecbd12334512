// How far stored numbers are from the originals: the error measures of every table.
#pragma once

#include <cstddef>

namespace kvq {

struct ErrorMetrics {
  double mean_squared_error = 0;
  double relative_error = 0;  // ||x - y|| / ||x||; 0 if both are zero
  double snr_db = 0;          // 10 log10(||x||^2 / ||x - y||^2); infinity if equal
  double cosine = 1;          // x.y / (||x|| ||y||); 1 if both are zero
  double max_absolute_error = 0;
};

// original, stored: `count` numbers each; accumulated in double precision.
ErrorMetrics measure_error(const float* original, const float* stored, std::size_t count);

}  // namespace kvq
