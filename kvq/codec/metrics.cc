#include "kvq/codec/metrics.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace kvq {

ErrorMetrics measure_error(const float* original, const float* stored, std::size_t count) {
  double original_square = 0;
  double stored_square = 0;
  double error_square = 0;
  double product = 0;
  double largest = 0;
  for (std::size_t i = 0; i < count; ++i) {
    const double x = original[i];
    const double y = stored[i];
    original_square += x * x;
    stored_square += y * y;
    product += x * y;
    error_square += (x - y) * (x - y);
    largest = std::max(largest, std::abs(x - y));
  }
  ErrorMetrics metrics;
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  metrics.max_absolute_error = largest;
  if (count > 0) metrics.mean_squared_error = error_square / static_cast<double>(count);
  metrics.snr_db = kInfinity;
  if (error_square > 0) {
    metrics.relative_error =
        original_square > 0 ? std::sqrt(error_square / original_square) : kInfinity;
    metrics.snr_db = 10 * std::log10(original_square / error_square);
  }
  if (original_square > 0 || stored_square > 0) {
    const double norms = std::sqrt(original_square) * std::sqrt(stored_square);
    metrics.cosine = norms > 0 ? product / norms : 0;
  }
  return metrics;
}

}  // namespace kvq
