#include "python/bindings/tensor.h"

#include <algorithm>
#include <cstring>
#include <optional>

#include "kvq/base/half.h"

namespace kvq::python {
namespace {

namespace nb = nanobind;

int bytes_of(Number number) { return number == Number::kFloat32 ? 4 : 2; }

std::optional<Number> number_of(nb::dlpack::dtype type) {
  if (type.lanes != 1) return {};
  const auto code = static_cast<nb::dlpack::dtype_code>(type.code);
  if (code == nb::dlpack::dtype_code::Float && type.bits == 32) return Number::kFloat32;
  if (code == nb::dlpack::dtype_code::Float && type.bits == 16) return Number::kFloat16;
  if (code == nb::dlpack::dtype_code::Bfloat && type.bits == 16) return Number::kBFloat16;
  return {};
}

// `heads` and `tokens`: their dimensions, counted from the last one's left neighbour.
template <typename AnyArray>
Result<Rows> rows_of_array(const AnyArray& array, std::string_view name, bool token_major) {
  const auto number = number_of(array.dtype());
  if (!number) return fail("{}: expected float32, float16 or bfloat16 numbers", name);
  const auto dimensions = static_cast<int>(array.ndim());
  if (dimensions != 3 && dimensions != 4) {
    return fail("{}: expected 3 or 4 dimensions, found {}", name, dimensions);
  }
  const auto last = static_cast<std::size_t>(dimensions - 1);
  const std::size_t token_axis = token_major ? last - 2 : last - 1;
  const std::size_t head_axis = token_major ? last - 1 : last - 2;
  if (array.shape(last) > 1 && array.stride(last) != 1) {
    return fail("{}: expected the numbers of a head side by side, found a stride of {}", name,
                array.stride(last));
  }
  Rows rows;
  rows.data = static_cast<std::byte*>(const_cast<void*>(static_cast<const void*>(array.data())));
  rows.number = *number;
  rows.batch = dimensions == 4 ? static_cast<int>(array.shape(0)) : 1;
  rows.heads = static_cast<int>(array.shape(head_axis));
  rows.tokens = static_cast<int>(array.shape(token_axis));
  rows.head_dim = static_cast<int>(array.shape(last));
  rows.batch_stride = dimensions == 4 ? array.stride(0) : 0;
  rows.head_stride = array.stride(head_axis);
  rows.token_stride = array.stride(token_axis);
  return rows;
}

}  // namespace

void read_row(const Rows& rows, int sequence, int head, int token, float* target) {
  const std::byte* row = rows.row(sequence, head, token);
  const auto count = static_cast<std::size_t>(rows.head_dim);
  switch (rows.number) {
    case Number::kFloat32:
      std::memcpy(target, row, count * sizeof(float));
      return;
    case Number::kFloat16:
      to_float(reinterpret_cast<const Half*>(row), target, count);
      return;
    case Number::kBFloat16:
      to_float(reinterpret_cast<const BFloat16*>(row), target, count);
  }
}

std::byte* Rows::row(int sequence, int head, int token) const {
  return data +
         (sequence * batch_stride + head * head_stride + token * token_stride) * bytes_of(number);
}

Result<Rows> rows_of(const Array& array, std::string_view name) {
  return rows_of_array(array, name, false);
}

Result<Rows> rows_of(const OutputArray& array, std::string_view name) {
  return rows_of_array(array, name, false);
}

Result<Rows> token_major_rows_of(const Array& array, std::string_view name) {
  return rows_of_array(array, name, true);
}

Result<Rows> token_major_rows_of(const OutputArray& array, std::string_view name) {
  return rows_of_array(array, name, true);
}

Result<KeptTokens> KeptTokens::of(const Array& array, int batch, int tokens) {
  const auto type = array.dtype();
  if (type.bits != 8 || type.lanes != 1) return fail("kept: expected booleans");
  if (array.ndim() != 2 || static_cast<int>(array.shape(0)) != batch ||
      static_cast<int>(array.shape(1)) != tokens) {
    return fail("kept: expected the shape [{}, {}], that of the tokens", batch, tokens);
  }
  KeptTokens kept;
  kept.data_ = static_cast<const std::uint8_t*>(array.data());
  kept.batch_stride_ = array.stride(0);
  kept.token_stride_ = array.stride(1);
  return kept;
}

int KeptTokens::count(int sequence, int tokens) const {
  if (data_ == nullptr) return tokens;
  int count = 0;
  for (int token = 0; token < tokens; ++token) count += holds(sequence, token) ? 1 : 0;
  return count;
}

void gather(const Rows& rows, int sequence, const KeptTokens& kept, float* target) {
  for (int token = 0; token < rows.tokens; ++token) {
    if (!kept.holds(sequence, token)) continue;
    for (int head = 0; head < rows.heads; ++head) {
      read_row(rows, sequence, head, token, target);
      target += rows.head_dim;
    }
  }
}

void write_row(const float* source, const Rows& rows, int sequence, int head, int token) {
  std::byte* row = rows.row(sequence, head, token);
  const auto count = static_cast<std::size_t>(rows.head_dim);
  switch (rows.number) {
    case Number::kFloat32:
      std::memcpy(row, source, count * sizeof(float));
      return;
    case Number::kFloat16:
      to_half(source, reinterpret_cast<Half*>(row), count);
      return;
    case Number::kBFloat16:
      std::transform(source, source + count, reinterpret_cast<BFloat16*>(row),
                     [](float number) { return to_bfloat16(number); });
  }
}

void scatter(const float* source, int sequence, const KeptTokens& kept, const Rows& rows) {
  const auto row_bytes = static_cast<std::size_t>(rows.head_dim * bytes_of(rows.number));
  for (int token = 0; token < rows.tokens; ++token) {
    const bool holds = kept.holds(sequence, token);
    for (int head = 0; head < rows.heads; ++head) {
      if (holds) {
        write_row(source, rows, sequence, head, token);
        source += rows.head_dim;
      } else {
        std::memset(rows.row(sequence, head, token), 0, row_bytes);
      }
    }
  }
}

}  // namespace kvq::python
