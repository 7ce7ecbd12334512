// The bodies of RowKernels in plain C++, for the compiler to vectorize. Each instruction set's file
// includes this once and is compiled with its own flags; everything here is local to that file.
// Cost: every loop is bound by loads and stores except silu_multiply (about 20 operations a
// number).
#pragma once

#include <cstdint>

#include "kvq/runtime/cpu/row_kernels.h"

namespace kvq {
namespace {

inline std::uint32_t bits_of(float value) { return __builtin_bit_cast(std::uint32_t, value); }
inline float float_of(std::uint32_t bits) { return __builtin_bit_cast(float, bits); }

// x - x is 0 for finite x, else NaN.
inline bool is_finite(float value) { return value - value == 0.0F; }

bool rms_norm(const float* input, const float* weight, float epsilon, int count, float* output) {
  float squares = 0;
#pragma omp simd reduction(+ : squares)
  for (int i = 0; i < count; ++i) squares += input[i] * input[i];
  const float scale = 1.0F / __builtin_sqrtf(squares / static_cast<float>(count) + epsilon);
#pragma omp simd
  for (int i = 0; i < count; ++i) output[i] = input[i] * scale * weight[i];
  return is_finite(squares);
}

void rotate(const float* input, const float* cosine, const float* sine, int head_dim,
            float* output) {
  const int half = head_dim / 2;
#pragma omp simd
  for (int i = 0; i < half; ++i) {
    const float first = input[i];
    const float second = input[i + half];
    output[i] = first * cosine[i] - second * sine[i];
    output[i + half] = second * cosine[i] + first * sine[i];
  }
}

// exp(x) for x in [-87, 88], NaN for NaN. x = n ln 2 + r with |r| <= ln 2 / 2: the sum with 1.5 *
// 2^23 leaves n in the low bits, and exp(r) is the Taylor polynomial of degree 6 (relative error
// 2e-7).
inline float exponential(float x) {
  constexpr float kRound = 12582912.0F;
  const float shifted = x * 1.44269504F + kRound;
  const float n = shifted - kRound;
  const float r = (x - n * 0.693145752F) - n * 1.42860677e-6F;
  float sum = 1.0F / 720;
  sum = sum * r + 1.0F / 120;
  sum = sum * r + 1.0F / 24;
  sum = sum * r + 1.0F / 6;
  sum = sum * r + 0.5F;
  sum = sum * r + 1.0F;
  sum = sum * r + 1.0F;
  return sum * float_of((bits_of(shifted) + 127U) << 23);
}

void silu_multiply(const float* gate, const float* up, int count, float* output) {
#pragma omp simd
  for (int i = 0; i < count; ++i) {
    float negated = -gate[i];
    negated = negated > 88.0F ? 88.0F : negated;  // comparisons that let NaN through
    negated = negated < -87.0F ? -87.0F : negated;
    output[i] = gate[i] / (1.0F + exponential(negated)) * up[i];
  }
}

void split(const float* input, int count, BFloat16* high, BFloat16* low) {
#pragma omp simd
  for (int i = 0; i < count; ++i) {
    const std::uint32_t cut = bits_of(input[i]) & 0xFFFF0000U;
    const std::uint32_t rest = bits_of(input[i] - float_of(cut));
    high[i].bits = static_cast<std::uint16_t>(cut >> 16);
    low[i].bits = static_cast<std::uint16_t>((rest + 0x7FFFU + ((rest >> 16) & 1U)) >> 16);
  }
}

template <bool kLow, bool kBias, bool kAccumulate>
void finish_product_as(const ProductRow& product, const float* bias, int count, float* output) {
  const float* high = product.high;
  const float* low = product.low;
#pragma omp simd
  for (int i = 0; i < count; ++i) {
    float sum = high[i];
    if (kLow) sum += low[i];
    if (kBias) sum += bias[i];
    if (kAccumulate) sum += output[i];
    output[i] = sum;
  }
}

template <bool kLow>
void finish_product_with(const ProductRow& product, const float* bias, bool accumulate, int count,
                         float* output) {
  if (bias != nullptr) {
    return accumulate ? finish_product_as<kLow, true, true>(product, bias, count, output)
                      : finish_product_as<kLow, true, false>(product, bias, count, output);
  }
  return accumulate ? finish_product_as<kLow, false, true>(product, bias, count, output)
                    : finish_product_as<kLow, false, false>(product, bias, count, output);
}

void finish_product(const ProductRow& product, const float* bias, bool accumulate, int count,
                    float* output) {
  return product.low != nullptr
             ? finish_product_with<true>(product, bias, accumulate, count, output)
             : finish_product_with<false>(product, bias, accumulate, count, output);
}

bool all_finite(const float* values, int count) {
  float zeros = 0;
#pragma omp simd reduction(+ : zeros)
  for (int i = 0; i < count; ++i) zeros += values[i] - values[i];
  return zeros == 0.0F;
}

constexpr RowKernels kKernels = {rms_norm, rotate,         silu_multiply,
                                 split,    finish_product, all_finite};

}  // namespace
}  // namespace kvq
