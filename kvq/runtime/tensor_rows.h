// A part of a checkpoint's tensor.
#pragma once

#include <cstdint>

#include "kvq/model/checkpoint.h"

namespace kvq {

// Rows [first, first + count) of a matrix.
inline TensorRef tensor_rows(const TensorRef& tensor, std::int64_t first, std::int64_t count) {
  const std::int64_t row_bytes = tensor.shape[1] * bytes_of(tensor.type);
  return {tensor.type, {count, tensor.shape[1]}, tensor.data + first * row_bytes};
}

}  // namespace kvq
