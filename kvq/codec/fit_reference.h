// fit.h once more, one number at a time in plain scalar code. Linked only into tests.
#pragma once

#include <cstdint>
#include <vector>

#include "kvq/base/half.h"
#include "kvq/codec/page_format.h"

namespace kvq {

struct ReferenceTensor {
  std::vector<std::uint8_t> codes;  // [64 tokens, head_dim]
  std::vector<Half> scales;         // [row groups][depth groups], as read_parameters()
  std::vector<Half> centers;        // likewise, empty if symmetric
};

// values [64 tokens, head_dim], rotated.
ReferenceTensor reference_fit(const TensorFormat& format, const std::vector<float>& values);

// power() of fit.h.
float reference_power(float x);

// Rotates `rows` [count, head_dim] by the definition of hadamard.h.
void reference_hadamard(std::vector<float>& rows, int head_dim);

// The least squared error that any positive scale can reach on a symmetric group with unlimited
// precision of the scale: every change of a code as the scale falls is visited.
double least_symmetric_error(const std::vector<double>& group, int levels);

}  // namespace kvq
