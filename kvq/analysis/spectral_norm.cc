// sigma^2 is the largest eigenvalue of G, the products of the matrix's rows with each other (of its
// columns, if they are fewer), summed in double precision. Lanczos' iteration finds it in a few
// dozen products G v, each from below: its value t is never above the eigenvalue. That none is
// further up is then proved by factoring (1 + kAccuracy) t I - G: Cholesky's factorization exists
// if and only if that matrix is positive definite, that is, if no eigenvalue reaches (1 +
// kAccuracy) t. Where the proof fails (the start vector was unlucky), all eigenvalues are computed.
//
// Cost, [1024, 4096]: G takes 4.3 GFLOP, the proof 0.4, the iteration 2 MFLOP a step.
#include "kvq/analysis/spectral_norm.h"

#include <Eigen/Dense>
#include <algorithm>
#include <cmath>
#include <random>
#include <vector>

namespace kvq {
namespace {

using Eigen::Index;
using Eigen::MatrixXd;
using Eigen::VectorXd;
using Rows = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

constexpr double kAccuracy = 1e-9;  // of sigma^2
constexpr int kSteps = 256;         // of Lanczos' iteration, at most
constexpr int kStepsBetweenChecks = 8;
constexpr Index kPiece = 256;  // columns (rows) that are summed at a time: they fit in the cache

// The lower triangle of the smaller of W W^T and W^T W.
MatrixXd gram(const Eigen::Map<const Rows>& matrix) {
  const bool of_rows = matrix.rows() <= matrix.cols();
  const Index size = std::min(matrix.rows(), matrix.cols());
  const Index depth = std::max(matrix.rows(), matrix.cols());
  MatrixXd sums = MatrixXd::Zero(size, size);
  MatrixXd piece;
  for (Index begin = 0; begin < depth; begin += kPiece) {
    const Index count = std::min(kPiece, depth - begin);
    if (of_rows) {
      piece = matrix.middleCols(begin, count).cast<double>();
    } else {
      piece = matrix.middleRows(begin, count).transpose().cast<double>();
    }
    sums.selfadjointView<Eigen::Lower>().rankUpdate(piece);
  }
  return sums;
}

VectorXd random_direction(Index size) {
  std::mt19937 random(1);
  std::normal_distribution<double> normal;
  VectorXd direction(size);
  for (double& x : direction) x = normal(random);
  return direction.normalized();
}

// The largest eigenvalue of the tridiagonal matrix of Lanczos' iteration.
double largest_ritz_value(const std::vector<double>& diagonal, const std::vector<double>& beside) {
  const auto size = static_cast<Index>(diagonal.size());
  Eigen::SelfAdjointEigenSolver<MatrixXd> solver;
  solver.computeFromTridiagonal(Eigen::Map<const VectorXd>(diagonal.data(), size),
                                Eigen::Map<const VectorXd>(beside.data(), size - 1),
                                Eigen::EigenvaluesOnly);
  return solver.eigenvalues().maxCoeff();
}

// Of a symmetric matrix (its lower triangle), from below.
double lanczos(const MatrixXd& matrix) {
  const Index size = matrix.rows();
  const Index steps = std::min<Index>(size, kSteps);
  MatrixXd basis(size, steps);
  std::vector<double> diagonal;
  std::vector<double> beside;
  VectorXd direction = random_direction(size);
  double value = 0;
  for (Index step = 0; step < steps; ++step) {
    basis.col(step) = direction;
    VectorXd next = matrix.selfadjointView<Eigen::Lower>() * direction;
    diagonal.push_back(direction.dot(next));
    // Twice, as one pass leaves rounding errors of the size of what it takes away.
    for (int pass = 0; pass < 2; ++pass) {
      next -= basis.leftCols(step + 1) * (basis.leftCols(step + 1).transpose() * next);
    }
    const double length = next.norm();
    const bool last = step + 1 == steps || length <= 1e-14 * std::abs(diagonal[0]);
    if (last || step % kStepsBetweenChecks == kStepsBetweenChecks - 1) {
      const double before = value;
      value = largest_ritz_value(diagonal, beside);
      if (last || value - before <= 1e-3 * kAccuracy * value) return value;
    }
    beside.push_back(length);
    direction = next / length;
  }
  return value;
}

// Whether every eigenvalue is below `bound`.
bool is_below(const MatrixXd& matrix, double bound) {
  MatrixXd difference = -matrix;
  difference.diagonal().array() += bound;
  const Eigen::LLT<Eigen::Ref<MatrixXd>> factors(difference);
  return factors.info() == Eigen::Success;
}

}  // namespace

double spectral_norm(const float* matrix, int rows, int columns) {
  MatrixXd products = gram(Eigen::Map<const Rows>(matrix, rows, columns));
  // float32's range squared is within double's; the iteration squares once more.
  const double scale = products.diagonal().maxCoeff();
  if (scale == 0) return 0;
  products /= scale;
  double square = lanczos(products);
  if (!is_below(products, square * (1 + kAccuracy))) {
    const Eigen::SelfAdjointEigenSolver<MatrixXd> solver(products, Eigen::EigenvaluesOnly);
    square = solver.eigenvalues().maxCoeff();
  }
  return std::sqrt(square) * std::sqrt(scale);
}

}  // namespace kvq
