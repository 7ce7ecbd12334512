#include "kvq/base/half.h"

#if defined(__x86_64__)
#include <immintrin.h>

#include "kvq/base/cpu.h"
#endif

namespace kvq {

float to_float(Half value) {
  // Multiplying by 2^112 rebiases the exponent and normalizes subnormals in one exact step.
  const std::uint32_t sign = static_cast<std::uint32_t>(value.bits & 0x8000U) << 16;
  const std::uint32_t magnitude = static_cast<std::uint32_t>(value.bits & 0x7fffU) << 13;
  if (magnitude >= 0x0f800000U) {  // infinity, NaN (made quiet, as the hardware does)
    const std::uint32_t quiet = magnitude > 0x0f800000U ? 0x00400000U : 0U;
    return std::bit_cast<float>(sign | 0x70000000U | magnitude | quiet);
  }
  const float scaled = std::bit_cast<float>(magnitude) * 0x1p112F;
  return std::bit_cast<float>(sign | std::bit_cast<std::uint32_t>(scaled));
}

Half to_half(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  const std::uint32_t sign = (bits >> 16) & 0x8000U;
  std::uint32_t magnitude = bits & 0x7fffffffU;
  if (magnitude > 0x7f800000U) {
    return {static_cast<std::uint16_t>(sign | 0x7e00U | ((magnitude >> 13) & 0x01ffU))};
  }
  if (magnitude >= 0x477ff000U) return {static_cast<std::uint16_t>(sign | 0x7c00U)};
  if (magnitude < 0x38800000U) {
    // Subnormal result: adding 0.5 leaves the rounded multiple of 2^-24 in the low fraction bits.
    const float shifted = std::bit_cast<float>(magnitude) + 0.5F;
    const std::uint32_t fraction = std::bit_cast<std::uint32_t>(shifted) - 0x3f000000U;
    return {static_cast<std::uint16_t>(sign | fraction)};
  }
  magnitude += 0x0fffU + ((magnitude >> 13) & 1U);  // round half to even
  return {static_cast<std::uint16_t>(sign | ((magnitude - 0x38000000U) >> 13))};
}

BFloat16 to_bfloat16(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  if ((bits & 0x7fffffffU) > 0x7f800000U) return {static_cast<std::uint16_t>((bits >> 16) | 0x40U)};
  return {static_cast<std::uint16_t>((bits + 0x7fffU + ((bits >> 16) & 1U)) >> 16)};
}

namespace {

#if defined(__x86_64__)
__attribute__((target("avx,f16c"))) std::size_t half_to_float_f16c(const Half* source,
                                                                   float* destination,
                                                                   std::size_t count) {
  std::size_t i = 0;
  for (; i + 8 <= count; i += 8) {
    const __m128i packed = _mm_loadu_si128(reinterpret_cast<const __m128i*>(source + i));
    _mm256_storeu_ps(destination + i, _mm256_cvtph_ps(packed));
  }
  return i;
}

__attribute__((target("avx,f16c"))) std::size_t float_to_half_f16c(const float* source,
                                                                   Half* destination,
                                                                   std::size_t count) {
  std::size_t i = 0;
  for (; i + 8 <= count; i += 8) {
    const __m128i packed = _mm256_cvtps_ph(_mm256_loadu_ps(source + i), _MM_FROUND_TO_NEAREST_INT);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(destination + i), packed);
  }
  return i;
}
#endif

}  // namespace

void to_float(const Half* source, float* destination, std::size_t count) {
  std::size_t i = 0;
#if defined(__x86_64__)
  if (host_isa() >= Isa::kAvx2) i = half_to_float_f16c(source, destination, count);
#endif
  for (; i < count; ++i) destination[i] = to_float(source[i]);
}

void to_float(const BFloat16* source, float* destination, std::size_t count) {
  for (std::size_t i = 0; i < count; ++i) destination[i] = to_float(source[i]);
}

void to_half(const float* source, Half* destination, std::size_t count) {
  std::size_t i = 0;
#if defined(__x86_64__)
  if (host_isa() >= Isa::kAvx2) i = float_to_half_f16c(source, destination, count);
#endif
  for (; i < count; ++i) destination[i] = to_half(source[i]);
}

}  // namespace kvq
