#include "kvq/analysis/gram_matrix.h"

#include <gtest/gtest.h>

#include <Eigen/Dense>
#include <cmath>
#include <random>
#include <vector>

namespace kvq {
namespace {

using Rows = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

Rows random_rows(int count, int width, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  Rows rows(count, width);
  for (int row = 0; row < count; ++row) {
    // Channels of sizes 1 to 100.
    for (int i = 0; i < width; ++i) {
      rows(row, i) = normal(random) * std::pow(100.0F, static_cast<float>(i) / width);
    }
  }
  return rows;
}

TEST(GramMatrixTest, AgreesWithASingularValueDecomposition) {
  for (const int count : {1, 16, 200}) {
    const Rows rows = random_rows(count, 48, 7);
    GramMatrix gram(48);
    gram.add(rows.data(), count, 48);
    const Eigen::VectorXd exact =
        Eigen::BDCSVD<Eigen::MatrixXd>(rows.cast<double>()).singularValues();
    const std::vector<double> values = gram.singular_values();
    ASSERT_EQ(values.size(), 48U);
    for (int i = 0; i < 48; ++i) {
      const double expected = i < exact.size() ? exact[i] / std::sqrt(count) : 0;
      EXPECT_NEAR(values[static_cast<std::size_t>(i)], expected, 1e-6 * exact[0]) << "value " << i;
    }
    EXPECT_NEAR(gram.root_mean_square(), rows.cast<double>().norm() / std::sqrt(count * 48.0),
                1e-9);
  }
}

TEST(GramMatrixTest, PiecesOfWiderRowsAddUp) {
  const Rows wide = random_rows(90, 64, 3);
  const Rows part = wide.middleCols(16, 32);
  GramMatrix whole(32);
  whole.add(part.data(), 90, 32);
  GramMatrix pieces(32);
  pieces.add(wide.data() + 16, 1, 64);
  pieces.add(wide.data() + 64 + 16, 0, 64);
  pieces.add(wide.data() + 64 + 16, 89, 64);
  const auto expected = whole.singular_values();
  const auto found = pieces.singular_values();
  for (std::size_t i = 0; i < expected.size(); ++i) EXPECT_NEAR(found[i], expected[i], 1e-6);
}

TEST(GramMatrixTest, NoRowsAreZeros) {
  const GramMatrix gram(16);
  EXPECT_EQ(gram.singular_values(), std::vector<double>(16, 0.0));
  EXPECT_EQ(gram.root_mean_square(), 0);
}

}  // namespace
}  // namespace kvq
