// 16-bit floating point storage types and their conversions.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>

namespace kvq {

// IEEE 754 binary16, storage only: sign 1, exponent 5, fraction 10 bits; largest finite 65504.
struct Half {
  std::uint16_t bits = 0;
  friend bool operator==(Half, Half) = default;
};

// The upper half of a binary32.
struct BFloat16 {
  std::uint16_t bits = 0;
  friend bool operator==(BFloat16, BFloat16) = default;
};

inline constexpr float kHalfMax = 65504.0F;

// Exact.
float to_float(Half value);
inline float to_float(BFloat16 value) {
  return std::bit_cast<float>(static_cast<std::uint32_t>(value.bits) << 16);
}

// Round to nearest, ties to even, as the hardware instructions do. Beyond the largest finite value:
// infinity. NaN stays NaN (quiet).
Half to_half(float value);
BFloat16 to_bfloat16(float value);

// Arrays of `count` elements; the same results as the functions above, vectorized where the
// machine allows. Source and destination must not overlap.
void to_float(const Half* source, float* destination, std::size_t count);
void to_float(const BFloat16* source, float* destination, std::size_t count);
void to_half(const float* source, Half* destination, std::size_t count);

}  // namespace kvq
