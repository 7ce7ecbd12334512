// Weights in oneDNN's packed layouts, cut into slices of output columns.
#pragma once

#include <oneapi/dnnl/dnnl.hpp>
#include <vector>

#include "kvq/runtime/ops.h"

namespace kvq {

struct ColumnSlice {
  int first = 0;  // output column
  int count = 0;
  dnnl::memory weights;  // [inputs, count], in an arena
};

class PackedMatrix : public Matrix {
 public:
  PackedMatrix(int outputs, int inputs) : Matrix(outputs, inputs) {}

  std::vector<ColumnSlice> slices;
  std::vector<float> bias;  // [outputs], or empty
};

// Columns in blocks of 64, slices of at most 4 blocks (so that a slice of 2,048 bf16 inputs fits a
// core's L2 cache of 1 MiB), their number a multiple of `threads` where there are enough blocks.
std::vector<ColumnSlice> cut_columns(int outputs, int threads);

// Packs rows [slice.first, + slice.count) of the stacked parts into slice.weights (where they are
// columns). Throws dnnl::error.
void pack_slice(std::span<const MatrixPart> parts, const dnnl::engine& engine, dnnl::stream& stream,
                ColumnSlice& slice);

}  // namespace kvq
