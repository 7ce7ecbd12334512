// The largest singular value of a matrix.
#pragma once

namespace kvq {

// matrix [rows, columns], finite. Relative error below 1e-9 (single-precision input taken as
// exact).
double spectral_norm(const float* matrix, int rows, int columns);

}  // namespace kvq
