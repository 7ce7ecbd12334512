// Arrays of other software, seen through DLPack: any strides, three kinds of numbers.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

#include "kvq/base/status.h"

namespace kvq::python {

using Array = nanobind::ndarray<nanobind::ro, nanobind::device::cpu>;
using OutputArray = nanobind::ndarray<nanobind::device::cpu>;

enum class Number : std::uint8_t { kFloat32, kFloat16, kBFloat16 };

// Rows of head_dim numbers: [batch, heads, tokens, head_dim]. Strides in numbers; those of the last
// dimension are 1.
struct Rows {
  std::byte* data = nullptr;
  Number number = Number::kFloat32;
  int batch = 0;
  int heads = 0;
  int tokens = 0;
  int head_dim = 0;
  std::int64_t batch_stride = 0;
  std::int64_t head_stride = 0;
  std::int64_t token_stride = 0;

  // Of [head_dim] numbers.
  std::byte* row(int sequence, int head, int token) const;
};

// A [batch, heads, tokens, head_dim] array, or [heads, tokens, head_dim] as a batch of one. `name`
// is the parameter's, for errors.
Result<Rows> rows_of(const Array& array, std::string_view name);
Result<Rows> rows_of(const OutputArray& array, std::string_view name);
// The same, of an array [batch, tokens, heads, head_dim].
Result<Rows> token_major_rows_of(const Array& array, std::string_view name);
Result<Rows> token_major_rows_of(const OutputArray& array, std::string_view name);

// Which tokens of a chunk are cached and attend: [batch, tokens]. Without an array: all.
class KeptTokens {
 public:
  KeptTokens() = default;
  static Result<KeptTokens> of(const Array& array, int batch, int tokens);

  bool holds(int sequence, int token) const {
    return data_ == nullptr || data_[sequence * batch_stride_ + token * token_stride_] != 0;
  }
  int count(int sequence, int tokens) const;

 private:
  const std::uint8_t* data_ = nullptr;
  std::int64_t batch_stride_ = 0;
  std::int64_t token_stride_ = 0;
};

// Kept tokens of one sequence as float32 [kept tokens, heads, head_dim].
void gather(const Rows& rows, int sequence, const KeptTokens& kept, float* target);
// Back to the same places; tokens that are not kept become zero.
void scatter(const float* source, int sequence, const KeptTokens& kept, const Rows& rows);
// One row, [head_dim], from and to the array's numbers.
void read_row(const Rows& rows, int sequence, int head, int token, float* target);
void write_row(const float* source, const Rows& rows, int sequence, int head, int token);

}  // namespace kvq::python
