#include "kvq/codec/metrics.h"

#include <gtest/gtest.h>

#include <cmath>

namespace kvq {
namespace {

TEST(Metrics, KnownErrors) {
  const float original[] = {3, 4, 0, 0};
  const float stored[] = {3, 3, 0, 0};
  const ErrorMetrics metrics = measure_error(original, stored, 4);
  EXPECT_DOUBLE_EQ(metrics.mean_squared_error, 0.25);
  EXPECT_DOUBLE_EQ(metrics.relative_error, 0.2);
  EXPECT_DOUBLE_EQ(metrics.snr_db, 10 * std::log10(25.0));
  EXPECT_DOUBLE_EQ(metrics.cosine, 21 / (5 * std::sqrt(18.0)));
  EXPECT_DOUBLE_EQ(metrics.max_absolute_error, 1);
}

TEST(Metrics, EqualAndZeroArrays) {
  const float zeros[] = {0, 0};
  const float ones[] = {1, 1};
  for (const float* same : {zeros, ones}) {
    const ErrorMetrics metrics = measure_error(same, same, 2);
    EXPECT_EQ(metrics.mean_squared_error, 0);
    EXPECT_EQ(metrics.relative_error, 0);
    EXPECT_TRUE(std::isinf(metrics.snr_db));
    EXPECT_DOUBLE_EQ(metrics.cosine, 1);
  }
  EXPECT_EQ(measure_error(ones, zeros, 2).cosine, 0);
  EXPECT_EQ(measure_error(ones, zeros, 2).relative_error, 1);
  EXPECT_TRUE(std::isinf(measure_error(zeros, ones, 2).relative_error));
  EXPECT_EQ(measure_error(zeros, ones, 0).mean_squared_error, 0);
}

}  // namespace
}  // namespace kvq
