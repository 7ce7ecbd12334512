#include "kvq/analysis/gram_matrix.h"

#include <Eigen/Dense>
#include <algorithm>
#include <cmath>

namespace kvq {
namespace {

using Rows = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

}  // namespace

GramMatrix::GramMatrix(int width)
    : width_(width), sums_(static_cast<std::size_t>(width) * static_cast<std::size_t>(width)) {}

void GramMatrix::add(const float* rows, int count, std::ptrdiff_t stride) {
  const Eigen::Map<const Rows, 0, Eigen::OuterStride<>> added(rows, count, width_,
                                                              Eigen::OuterStride<>(stride));
  const Eigen::MatrixXd exact = added.cast<double>();
  Eigen::Map<Eigen::MatrixXd> sums(sums_.data(), width_, width_);
  sums.selfadjointView<Eigen::Lower>().rankUpdate(exact.transpose());
  rows_ += count;
}

std::vector<double> GramMatrix::singular_values() const {
  const Eigen::Map<const Eigen::MatrixXd> sums(sums_.data(), width_, width_);
  const auto count = static_cast<double>(std::max<std::int64_t>(rows_, 1));
  // Reads the lower triangle; gives the eigenvalues in ascending order.
  const Eigen::SelfAdjointEigenSolver<Eigen::MatrixXd> solver(sums / count, Eigen::EigenvaluesOnly);
  std::vector<double> values(solver.eigenvalues().begin(), solver.eigenvalues().end());
  std::ranges::reverse(values);
  for (double& value : values) value = std::sqrt(std::max(value, 0.0));
  return values;
}

double GramMatrix::root_mean_square() const {
  double squares = 0;
  for (int i = 0; i < width_; ++i) squares += sums_[static_cast<std::size_t>(i * (width_ + 1))];
  const auto count = static_cast<double>(std::max<std::int64_t>(rows_, 1)) * width_;
  return std::sqrt(squares / count);
}

}  // namespace kvq
