// The fits against exhaustive search, and the rotation against its definition.
#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "kvq/codec/fit_reference.h"
#include "kvq/codec/hadamard.h"
#include "kvq/codec/metrics.h"
#include "kvq/codec/test_pages.h"

namespace kvq {
namespace {

// The candidates' loss against every possible scale, dB: what fit_candidates.inl promises.
TEST(Fit, SymmetricIsCloseToTheBestScale) {
  for (const Bits bits : packed_bits()) {
    for (const Data data : {Data::kNormal, Data::kHeavyTailed}) {
      const PageFormat format = make_format(fmt::format("k{0}:none,v{0}:none", name(bits)), 256);
      const auto rows = make_rows(data, 256, 9);
      const Rows original = to_floats(rows);
      const Rows stored = unpack(format, pack(format, rows, rows)).key;
      double error = 0;
      double least = 0;
      for (std::size_t start = 0; start < original.size(); start += 64) {
        const std::vector<double> group(original.begin() + start, original.begin() + start + 64);
        least += least_symmetric_error(group, levels(bits));
        for (std::size_t i = start; i < start + 64; ++i) {
          error += std::pow(static_cast<double>(original[i]) - stored[i], 2);
        }
      }
      const double loss = 10 * std::log10(error / least);
      const double limit = data == Data::kNormal ? 0.02 : 0.03;
      EXPECT_GE(loss, -1e-6) << name(bits);
      EXPECT_LT(loss, bits == Bits::k8 ? 0.15 : limit) << name(bits);
    }
  }
}

TEST(Fit, MeanSquareIsNeverWorseThanMinMax) {
  for (const Bits bits : packed_bits()) {
    for (const char* options : {"none", "none:affine", "none:channel:affine:g32"}) {
      const auto rows = make_rows(Data::kHeavyTailed, 128, 10);
      const Rows original = to_floats(rows);
      const auto error = [&](const char* fit) {
        const PageFormat format =
            make_format(fmt::format("k{0}:{1}:{2},v{0}:{1}:{2}", name(bits), options, fit), 128);
        const Rows stored = unpack(format, pack(format, rows, rows)).value;
        return measure_error(original.data(), stored.data(), stored.size()).mean_squared_error;
      };
      EXPECT_LT(error("mse"), error("minmax")) << name(bits) << " " << options;
    }
  }
}

// What hqq minimizes is not quite the mean error, but close to it.
TEST(Fit, HqqLowersTheMeanErrorOfMinMax) {
  for (const Bits bits : packed_bits()) {
    for (const char* options : {"none:affine", "none:channel:affine:g32"}) {
      const auto rows = make_rows(Data::kHeavyTailed, 128, 12);
      const Rows original = to_floats(rows);
      const auto error = [&](const char* fit) {
        const PageFormat format =
            make_format(fmt::format("k{0}:{1}:{2},v{0}:{1}:{2}", name(bits), options, fit), 128);
        const Rows stored = unpack(format, pack(format, rows, rows)).value;
        double sum = 0;
        for (std::size_t i = 0; i < stored.size(); ++i) sum += std::abs(stored[i] - original[i]);
        return sum;
      };
      EXPECT_LT(error("hqq"), 0.97 * error("minmax")) << name(bits) << " " << options;
    }
  }
}

TEST(Fit, PowerIsWithinItsPromise) {
  for (int i = 0; i < 24 * 1024; ++i) {
    const float x = std::exp2(static_cast<float>(i) / 1024 - 3);
    ASSERT_NEAR(reference_power(x) / std::pow(static_cast<double>(x), -0.3), 1, 0x1p-19) << x;
  }
}

TEST(Hadamard, EqualsTheDefinitionAndIsItsOwnInverse) {
  for (const int head_dim : {16, 32, 64, 80, 96, 128, 192, 240, 256}) {
    const Rows original = to_floats(make_rows(Data::kNormal, head_dim, 11));
    Rows expected = original;
    reference_hadamard(expected, head_dim);
    const int block = hadamard_block(head_dim);
    double sum = 0;  // row 0, column 5 of the first block, by the matrix
    for (int i = 0; i < block; ++i)
      sum += __builtin_parity(i & 5) != 0 ? -original[i] : original[i];
    EXPECT_NEAR(expected[5], sum / std::sqrt(block), 1e-5);
    for (const Isa isa : runnable_isas()) {
      Rows rows = original;
      hadamard_rows(rows.data(), kPageTokens, head_dim, isa);
      ASSERT_EQ(rows, expected) << name(isa) << " head_dim " << head_dim;
      hadamard_rows(rows.data(), kPageTokens, head_dim, isa);
      for (std::size_t i = 0; i < rows.size(); ++i) ASSERT_NEAR(rows[i], original[i], 4e-6);
    }
  }
}

}  // namespace
}  // namespace kvq
