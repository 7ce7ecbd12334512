#include "kvq/analysis/stored_error.h"

#include <cmath>
#include <cstddef>
#include <new>

namespace kvq {
namespace {

struct AlignedDelete {
  void operator()(std::byte* bytes) const {
    ::operator delete (bytes, std::align_val_t{kPageAlignment});
  }
};

std::unique_ptr<std::byte, AlignedDelete> new_page(std::size_t bytes) {
  return std::unique_ptr<std::byte, AlignedDelete>(
      static_cast<std::byte*>(::operator new (bytes, std::align_val_t{kPageAlignment})));
}

}  // namespace

void ErrorSum::add(const float* original, const float* stored, std::size_t count) {
  for (std::size_t i = 0; i < count; ++i) {
    const double x = original[i];
    const double difference = x - double{stored[i]};
    original_square_ += x * x;
    error_square_ += difference * difference;
  }
  count_ += static_cast<double>(count);
}

void ErrorSum::add(const ErrorSum& other) {
  error_square_ += other.error_square_;
  original_square_ += other.original_square_;
  count_ += other.count_;
}

StoredError ErrorSum::error() const {
  StoredError result;
  if (count_ > 0) result.mean_squared_error = error_square_ / count_;
  if (original_square_ > 0) result.relative_error = std::sqrt(error_square_ / original_square_);
  return result;
}

void add_page(std::span<const PageFormat> formats, const Half* key, const Half* value, Isa isa,
              PageErrors& errors) {
  const auto count = static_cast<std::size_t>(kPageTokens * formats.front().head_dim());
  std::vector<float> exact_key(count);
  std::vector<float> exact_value(count);
  std::vector<float> stored_key(count);
  std::vector<float> stored_value(count);
  to_float(key, exact_key.data(), count);
  to_float(value, exact_value.data(), count);
  for (std::size_t i = 0; i < formats.size(); ++i) {
    const auto page = new_page(formats[i].page_bytes);
    pack_page(formats[i], key, value, page.get(), isa);
    unpack_page(formats[i], page.get(), stored_key.data(), stored_value.data());
    errors.key[i].add(exact_key.data(), stored_key.data(), count);
    errors.value[i].add(exact_value.data(), stored_value.data(), count);
  }
}

}  // namespace kvq
