// The integer dot products of one block of 64 rows with AVX-512 VNNI, for the decode kernels of
// keys and values, and the small vector helpers that they share.
//
//   accumulator[v][i], lane l  +=  sum over depths d of  code[row(u = kFirst + i, l)][d] *
//   operand[v][d]
//
// v counts virtual heads: query heads x terms of the operand. 16 accumulators live in registers, so
// up to 4 virtual heads take all four code registers u in one pass, 8 take two passes of two:
// nothing is unpacked twice, since a packed line serves exactly one pass from 3 bits on. Per quad
// and pass: kCount * heads VPDPBUSD (two a cycle on Zen 5), one broadcast a head, unpacking.
#pragma once

#include <cstring>

#include "kvq/attention/cpu/decode_avx512_codes.h"

namespace kvq {
namespace {

// Hands out prefetches evenly over `steps` (1 or more) calls of step().
class Pacer {
 public:
  KVQ_INLINE Pacer(Prefetch prefetch, int steps)
      : at_(prefetch.at),
        lines_(static_cast<int>((prefetch.end - prefetch.at) / 64)),
        steps_(steps) {}
  KVQ_INLINE void step() {
    due_ += lines_;
    while (due_ >= steps_) {
      prefetch_line(at_);
      at_ += 64;
      due_ -= steps_;
    }
  }

 private:
  const std::byte* at_;
  int lines_;
  int steps_;
  int due_ = 0;  // lines times steps
};

// sum += dot products of 4 bytes, unsigned a and signed b. Written as assembly because GCC 12
// copies and spills loop-carried accumulators of the intrinsic.
KVQ_INLINE void add_dot(__m512i& sum, __m512i a, __m512i b) {
  asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
}

// Code registers of one pass over the planes with `heads` virtual heads.
constexpr int pass_width(int heads) { return heads <= 4 ? 4 : 2; }
// Heads of the next block when `left` are left: 8 (one term only), 4, 2 or 1.
constexpr int head_block(int left, int terms) {
  return left >= 8 && terms == 1 ? 8 : left >= 4 ? 4 : left >= 2 ? 2 : 1;
}
// Passes over the planes for all query heads.
inline int total_passes(int heads, int terms) {
  int passes = 0;
  for (int left = heads; left > 0; left -= head_block(left, terms)) {
    passes += 4 / pass_width(head_block(left, terms) * terms);
  }
  return passes;
}

template <typename Source, bool kIsKey, int kTurn, int kFirst, int kHeads, int kCount>
KVQ_INLINE void dot_quad(const PlaneCursor& block, const std::byte* operand, int stride,
                         __m512i (&accumulator)[kHeads][kCount]) {
  const PlaneCursor at{block.low + 32 * Source::kLow * kTurn,
                       block.high + 32 * Source::kHigh * kTurn};
  __m512i codes[kCount];
  Source::template load<kTurn, kFirst, kCount>(at, codes);
#pragma GCC unroll 8
  for (int head = 0; head < kHeads; ++head) {
    std::int32_t four;
    std::memcpy(&four, operand + head * stride + 4 * kTurn, 4);
    const __m512i x = _mm512_set1_epi32(four);
#pragma GCC unroll 4
    for (int i = 0; i < kCount; ++i) {
      if (kIsKey) {
        add_dot(accumulator[head][i], codes[i], x);
      } else {
        add_dot(accumulator[head][i], x, codes[i]);
      }
    }
  }
}

// Adds `quads` (a multiple of 4) depth quads.
//   block    the planes at the first quad, which must be a multiple of 4
//   operand  [kHeads] rows of bytes, `stride` bytes apart: int8 for keys, uint8 for values
template <typename Source, bool kIsKey, int kFirst, int kHeads, int kCount>
KVQ_INLINE void dot(PlaneCursor block, const std::byte* operand, int stride, int quads,
                    Pacer& pacer, __m512i (&accumulator)[kHeads][kCount]) {
  for (int quad = 0; quad < quads; quad += 4) {
    pacer.step();
    dot_quad<Source, kIsKey, 0, kFirst>(block, operand, stride, accumulator);
    dot_quad<Source, kIsKey, 1, kFirst>(block, operand, stride, accumulator);
    dot_quad<Source, kIsKey, 2, kFirst>(block, operand, stride, accumulator);
    dot_quad<Source, kIsKey, 3, kFirst>(block, operand, stride, accumulator);
    block.low += 128 * Source::kLow;
    block.high += 128 * Source::kHigh;
    operand += 16;
  }
}

// The planes of a block from quad `quad` (a multiple of 4) on.
template <typename Source>
KVQ_INLINE PlaneCursor planes_at(const std::byte* block, int quads, int quad) {
  return {block + 32 * Source::kLow * quad,
          block + 32 * Source::kLow * quads + 32 * Source::kHigh * quad};
}

// Two terms (high, low) or one to the int32 result.
template <int kTerms, int kHeads, int kVirtual, int kCount>
KVQ_INLINE __m512 total(const __m512i (&accumulator)[kVirtual][kCount], int head, int i) {
  static_assert(kVirtual == kHeads * kTerms);
  if constexpr (kTerms == 1)
    return _mm512_cvtepi32_ps(accumulator[head][i]);
  else
    return _mm512_cvtepi32_ps(_mm512_add_epi32(_mm512_slli_epi32(accumulator[head][i], 8),
                                               accumulator[kHeads + head][i]));
}

// Parameters of 64 slots as binary32.
KVQ_INLINE void pick_lines(const std::byte* section, const LinePick& pick, __m512 (&out)[4]) {
  const __m512i first = _mm512_load_si512(section + pick.first_line);
  const __m512i second = _mm512_load_si512(section + pick.second_line);
#pragma GCC unroll 2
  for (int half = 0; half < 2; ++half) {
    const __m512i x =
        _mm512_permutex2var_epi16(first, _mm512_load_si512(pick.index + 32 * half), second);
    out[2 * half] = _mm512_cvtph_ps(_mm512_castsi512_si256(x));
    out[2 * half + 1] = _mm512_cvtph_ps(_mm512_extracti64x4_epi64(x, 1));
  }
}

// Picks `count` vectors of parameters, times `unit` [64] where it is not null.
inline void pick_all(const std::byte* section, const LinePick* picks, int count, const float* unit,
                     float (*out)[64]) {
  for (int n = 0; n < count; ++n) {
    __m512 x[4];
    pick_lines(section, picks[n], x);
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      if (unit != nullptr) x[i] = _mm512_mul_ps(x[i], _mm512_load_ps(unit + 16 * i));
      _mm512_store_ps(out[n] + 16 * i, x[i]);
    }
  }
}

}  // namespace
}  // namespace kvq
