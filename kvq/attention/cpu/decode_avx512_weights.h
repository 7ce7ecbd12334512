// Softmax weights to the uint8 operand of the values' dot products with AVX-512.
//
//   code[term][token] = weight[slot of token] * scale[slot of token] * limit / maximum
//
// One term is scaled by the exact maximum of each half of the page's tokens, two terms by that of
// the page: a dominant token comes out exact. Which tokens make a half is free where scales belong
// to tokens. So halves are chosen to be whole registers of the keys' slot order as well as whole
// quads T = token / 4 of the values: maxima need no masks, and the dot products of a half skip the
// other's quads.
//
//   Split    part of register u   of quad T   for
//   kTurns   u >> 1               T bit 1     RowOrder::kQuads
//   kGroups  u & 1                T bit 2     the other orders
//   kHalves  lanes, by a mask     T bit 3     row-wise parameters, which go by runs of tokens
//   kWhole   one part                         two terms
//
// Four heads are reduced and divided together: about 130 instructions for their 256 weights, about
// 60 cycles of latency, so callers start all blocks before they need the first.
#pragma once

#include "kvq/attention/cpu/decode_avx512_dot.h"

namespace kvq {
namespace {

enum class Split : std::uint8_t { kTurns, kGroups, kHalves, kWhole };

constexpr int parts_of(Split split) { return split == Split::kWhole ? 1 : 2; }
constexpr int terms_of(Split split) { return split == Split::kWhole ? 2 : 1; }
// Of register u; not for kHalves.
constexpr int part_of(Split split, int u) {
  return split == Split::kTurns ? u >> 1 : split == Split::kGroups ? u & 1 : 0;
}
// The quads of part 1.
constexpr __mmask16 second_quads(Split split) {
  return split == Split::kTurns ? 0xCCCC : split == Split::kGroups ? 0xF0F0 : 0xFF00;
}

// Maxima of four vectors: result[4 n + i] = the largest element of x[i].
KVQ_INLINE __m512 largest_of_four(__m512 a, __m512 b, __m512 c, __m512 d) {
  const __m512 ab = _mm512_max_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
  const __m512 cd = _mm512_max_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
  __m512 x = _mm512_max_ps(
      _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(ab), _mm512_castps_pd(cd))),
      _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(ab), _mm512_castps_pd(cd))));
  x = _mm512_max_ps(x, _mm512_shuffle_f32x4(x, x, 0x4E));
  return _mm512_max_ps(x, _mm512_shuffle_f32x4(x, x, 0xB1));
}

// Four vectors of int32 in [0, 255] to bytes in the order of the tokens.
KVQ_INLINE __m512i pack_weights(const __m512i (&x)[4], __m512i order) {
  const __m512i low = _mm512_packus_epi32(x[0], x[1]);
  const __m512i high = _mm512_packus_epi32(x[2], x[3]);
  return _mm512_permutexvar_epi8(order, _mm512_packus_epi16(low, high));
}

// Up to four heads: weights[h][slot] * scales[slot] (null: 1), none negative, to `codes`
// [terms][kAllHeads][64 tokens] and `factors` [parts][kAllHeads], of which kHeads are written.
template <Split kSplit, int kHeads, int kAllHeads>
KVQ_INLINE void quantize_heads(const DecodePlan& plan, const float (*weights)[64],
                               const float* scales, std::uint8_t (*codes)[64], float* factors) {
  static_assert(kHeads == 1 || kHeads == 2 || kHeads == 4);
  constexpr int kParts = parts_of(kSplit);
  constexpr float kLimit = kSplit == Split::kWhole ? 65535 : 255;
  __m512 x[kHeads][4];
  __m512 top[kParts][4];  // heads that are not there repeat others
#pragma GCC unroll 4
  for (int head = 0; head < kHeads; ++head) {
#pragma GCC unroll 4
    for (int u = 0; u < 4; ++u) {
      x[head][u] = _mm512_load_ps(weights[head] + 16 * u);
      if (scales != nullptr)
        x[head][u] = _mm512_mul_ps(x[head][u], _mm512_load_ps(scales + 16 * u));
    }
    const __m512(&p)[4] = x[head];
    if constexpr (kSplit == Split::kTurns) {
      top[0][head] = _mm512_max_ps(p[0], p[1]);
      top[1][head] = _mm512_max_ps(p[2], p[3]);
    } else if constexpr (kSplit == Split::kGroups) {
      top[0][head] = _mm512_max_ps(p[0], p[2]);
      top[1][head] = _mm512_max_ps(p[1], p[3]);
    } else if constexpr (kSplit == Split::kWhole) {
      top[0][head] = _mm512_max_ps(_mm512_max_ps(p[0], p[1]), _mm512_max_ps(p[2], p[3]));
    } else {
      top[0][head] = top[1][head] = _mm512_setzero_ps();
#pragma GCC unroll 4
      for (int u = 0; u < 4; ++u) {
        const __mmask16 second = plan.second_half[u];
        const auto first = static_cast<__mmask16>(~second);
        top[0][head] = _mm512_mask_max_ps(top[0][head], first, top[0][head], p[u]);
        top[1][head] = _mm512_mask_max_ps(top[1][head], second, top[1][head], p[u]);
      }
    }
  }
  alignas(16) float inverse[kParts][4];
#pragma GCC unroll 2
  for (int part = 0; part < kParts; ++part) {
    const __m512(&t)[4] = top[part];
    const __m128 maximum =
        _mm512_castps512_ps128(largest_of_four(t[0], t[1 % kHeads], t[2 % kHeads], t[3 % kHeads]));
    // Weights below 1e-30 in a whole part count as zero: their reciprocal would overflow.
    const __m128 divisor = _mm_max_ps(maximum, _mm_set1_ps(1e-30F));
    _mm_store_ps(inverse[part], _mm_div_ps(_mm_set1_ps(kLimit), divisor));
    const auto written = static_cast<__mmask8>((1 << kHeads) - 1);
    _mm_mask_storeu_ps(factors + part * kAllHeads, written,
                       _mm_mul_ps(maximum, _mm_set1_ps(1 / kLimit)));
  }
  const __m512i order = _mm512_load_si512(plan.weight_order);
#pragma GCC unroll 4
  for (int head = 0; head < kHeads; ++head) {
    __m512i q[4];
#pragma GCC unroll 4
    for (int u = 0; u < 4; ++u) {
      __m512 factor = _mm512_set1_ps(inverse[part_of(kSplit, u)][head]);
      if constexpr (kSplit == Split::kHalves) {
        factor =
            _mm512_mask_blend_ps(plan.second_half[u], factor, _mm512_set1_ps(inverse[1][head]));
      }
      q[u] = _mm512_cvtps_epi32(_mm512_mul_ps(x[head][u], factor));
    }
    if constexpr (kSplit == Split::kWhole) {
      __m512i high[4];
#pragma GCC unroll 4
      for (int u = 0; u < 4; ++u) {
        high[u] = _mm512_srli_epi32(q[u], 8);
        q[u] = _mm512_and_si512(q[u], _mm512_set1_epi32(255));
      }
      _mm512_store_si512(codes[head], pack_weights(high, order));
    }
    _mm512_store_si512(codes[(terms_of(kSplit) - 1) * kAllHeads + head], pack_weights(q, order));
  }
}

// The same for 1, 2, 4 or 8 heads.
template <Split kSplit, int kHeads>
KVQ_INLINE void quantize_weights(const DecodePlan& plan, const float (*weights)[64],
                                 const float* scales, std::uint8_t (*codes)[64], float* factors) {
  constexpr int kTogether = (kHeads - 1) % 4 + 1;  // at most four
#pragma GCC unroll 2
  for (int head = 0; head < kHeads; head += kTogether) {
    quantize_heads<kSplit, kTogether, kHeads>(plan, weights + head, scales, codes + head,
                                              factors + head);
  }
}

// Sums of 4 consecutive tokens' quantized weights, [16] as int32; both terms.
template <int kHeads, int kTerms>
KVQ_INLINE __m512i quad_sums(const std::uint8_t (*codes)[64], int head) {
  const __m512i zero = _mm512_setzero_si512();
  const __m512i low =
      _mm512_dpbusd_epi32(zero, _mm512_load_si512(codes[(kTerms - 1) * kHeads + head]), fill(1));
  if constexpr (kTerms == 1) return low;
  const __m512i high = _mm512_dpbusd_epi32(zero, _mm512_load_si512(codes[head]), fill(1));
  return _mm512_add_epi32(_mm512_slli_epi32(high, 8), low);
}

}  // namespace
}  // namespace kvq
