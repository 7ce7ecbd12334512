// Norms and singular values of a matrix of many rows, from the products of its columns alone.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace kvq {

// Sums X^T X over rows that arrive in pieces, in double precision: the eigenvalues of the sum are
// the squares of the singular values of X [rows, width]. Values below 1e-8 of the largest are lost
// in the rounding of the squares.
class GramMatrix {
 public:
  explicit GramMatrix(int width);

  // rows  [count, width], `stride` numbers from one row to the next
  void add(const float* rows, int count, std::ptrdiff_t stride);

  // The singular values divided by sqrt(rows), largest first, [width]: the root mean square of the
  // rows along their principal directions, whatever their number. Zeros where there are no rows.
  std::vector<double> singular_values() const;
  // Of all numbers added.
  double root_mean_square() const;

 private:
  int width_;
  std::int64_t rows_ = 0;
  std::vector<double> sums_;  // [width, width], the lower triangle
};

}  // namespace kvq
