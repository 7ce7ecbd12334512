// Packed planes to dot-product operands with AVX2, and the dot products.
//
// VPMADDUBSW multiplies bytes and adds neighbours to int16, which overflows if too many are summed:
// the four quads of one step are summed in int16 (at most 4 x 2 x 255 x 15), then widened. So codes
// have at most four bits here; 8-bit codes are split into nibbles, code = low + 16 high.
// A chunk is two registers of 8 rows that come from the same packed bytes (8 bits: the two nibbles
// of one). Registers are few (16), so one query head (two terms) or two heads (one term) take a
// pass. Per chunk, quad and operand row: 2 VPMADDUBSW, 2 VPADDW, and every fourth quad 2 VPMADDWD,
// 2 VPADDD.
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "kvq/attention/cpu/decode_kernels.h"

namespace kvq {
namespace {

#define KVQ_INLINE inline __attribute__((always_inline))

// Written as assembly because GCC 12 takes a function that only prefetches for pure and drops it.
KVQ_INLINE void prefetch_line(const std::byte* address) {
  asm volatile("prefetcht0 %0" : : "m"(*reinterpret_cast<const char*>(address)));
}

// Hands out prefetches evenly over `steps` calls of step().
class Pacer {
 public:
  KVQ_INLINE Pacer(Prefetch prefetch, int steps) : at_(prefetch.at), end_(prefetch.end) {
    const int lines = static_cast<int>((prefetch.end - prefetch.at) / 64);
    per_step_ = (static_cast<std::int64_t>(lines) << 16) / steps + 1;
  }
  KVQ_INLINE void step() {
    due_ += per_step_;
    for (; due_ >= kOne && at_ < end_; due_ -= kOne, at_ += 64) prefetch_line(at_);
  }

 private:
  static constexpr std::int64_t kOne = 1 << 16;  // one line, in the units of due_
  const std::byte* at_;
  const std::byte* end_;
  std::int64_t per_step_;
  std::int64_t due_ = 0;
};

KVQ_INLINE __m256i fill(int byte) { return _mm256_set1_epi8(static_cast<char>(byte)); }
KVQ_INLINE __m256i load_packed(const std::byte* at) {
  return _mm256_load_si256(reinterpret_cast<const __m256i*>(at));
}

struct PlaneCursor {
  const std::byte* low;
  const std::byte* high;
};

// Codes<bits>: load<kTurn>(cursor at the quad, chunk, registers), kChunks, and where the chunk's
// registers belong: slot(chunk, i) is the first of 8 slots. kSplit: the two registers are the
// nibbles of the same rows. kShift: register i holds code * 2^kShift[i].
template <Bits kBits>
struct Codes;

// Chunk: half (g >> 2), half of that (g >> 1 & 1). Registers: rows r = 0, 1.
template <>
struct Codes<Bits::k4> {
  static constexpr RowOrder kOrder = RowOrder::kQuads;
  static constexpr std::int8_t kShift[2] = {0, 0};
  static constexpr bool kSplit = false;
  static constexpr int kChunks = 4, kLow = 4, kHigh = 0;
  static constexpr int slot(int chunk, int i) {
    return 16 * (2 * (chunk >> 1) + i) + 8 * (chunk & 1);
  }

  template <int kTurn>
  static KVQ_INLINE void load(const PlaneCursor& at, int chunk, __m256i (&codes)[2]) {
    const __m256i x = load_packed(at.low + 32 * (chunk ^ (kTurn & 1) ^ (kTurn & 2)));
    codes[0] = _mm256_and_si256(x, fill(0x0F));
    codes[1] = _mm256_and_si256(_mm256_srli_epi16(x, 4), fill(0x0F));
  }
};

// Chunk: r (bit 2), then as at 4 bits. Registers: low and high nibble.
template <>
struct Codes<Bits::k8> {
  static constexpr RowOrder kOrder = RowOrder::kQuads;
  static constexpr std::int8_t kShift[2] = {0, 0};
  static constexpr bool kSplit = true;
  static constexpr int kChunks = 8, kLow = 8, kHigh = 0;
  static constexpr int slot(int chunk, int /*i*/) {
    return 16 * (2 * ((chunk >> 1) & 1) + (chunk >> 2)) + 8 * (chunk & 1);
  }

  template <int kTurn>
  static KVQ_INLINE void load(const PlaneCursor& at, int chunk, __m256i (&codes)[2]) {
    const __m256i x = load_packed(at.low + 32 * (chunk ^ (kTurn & 1) ^ (kTurn & 2)));
    codes[0] = _mm256_and_si256(x, fill(0x0F));
    codes[1] = _mm256_and_si256(_mm256_srli_epi16(x, 4), fill(0x0F));
  }
};

// Chunk: half (g >> 2), r. Registers: j & 1.
template <>
struct Codes<Bits::k2> {
  static constexpr RowOrder kOrder = RowOrder::kPairs;
  static constexpr std::int8_t kShift[2] = {0, 2};
  static constexpr bool kSplit = false;
  static constexpr int kChunks = 4, kLow = 2, kHigh = 0;
  static constexpr int slot(int chunk, int i) {
    return 16 * (2 * (chunk & 1) + i) + 8 * (chunk >> 1);
  }

  template <int kTurn>
  static KVQ_INLINE void load(const PlaneCursor& at, int chunk, __m256i (&codes)[2]) {
    const __m256i packed = load_packed(at.low + 32 * ((chunk >> 1) ^ (kTurn >> 1)));
    const __m256i x = _mm256_srl_epi16(packed, _mm_cvtsi32_si128(4 * (chunk & 1)));
    codes[0] = _mm256_and_si256(x, fill(0x03));
    codes[1] = _mm256_and_si256(x, fill(0x0C));
  }
};

// As 2 bits, with bit 2 from the 1-bit plane, whose word g is spread over the lanes 2 g + (j >> 1).
template <>
struct Codes<Bits::k3> {
  static constexpr RowOrder kOrder = RowOrder::kPairs;
  static constexpr std::int8_t kShift[2] = {0, 0};
  static constexpr bool kSplit = false;
  static constexpr int kChunks = 4, kLow = 2, kHigh = 1;
  static constexpr int slot(int chunk, int i) { return Codes<Bits::k2>::slot(chunk, i); }

  template <int kTurn>
  static KVQ_INLINE void load(const PlaneCursor& at, int chunk, __m256i (&codes)[2]) {
    const __m128i by_row = _mm_cvtsi32_si128(4 * (chunk & 1));
    const __m256i low =
        _mm256_srl_epi16(load_packed(at.low + 32 * ((chunk >> 1) ^ (kTurn >> 1))), by_row);
    const __m256i word = _mm256_add_epi32(_mm256_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3),
                                          _mm256_set1_epi32(4 * (chunk >> 1)));
    const __m256i by_pair = _mm256_setr_epi32(0, 2, 0, 2, 0, 2, 0, 2);
    const __m256i spread = _mm256_permutevar8x32_epi32(load_packed(at.high), word);
    const __m256i high = _mm256_srl_epi16(_mm256_srlv_epi32(spread, by_pair), by_row);
    codes[0] = _mm256_or_si256(_mm256_and_si256(low, fill(0x03)),
                               _mm256_and_si256(_mm256_slli_epi16(high, 2), fill(0x04)));
    codes[1] = _mm256_or_si256(_mm256_and_si256(_mm256_srli_epi16(low, 2), fill(0x03)),
                               _mm256_and_si256(_mm256_slli_epi16(high, 1), fill(0x04)));
  }
};

// Chunk: r, j >> 1. Registers: j & 1.
template <>
struct Codes<Bits::k1> {
  static constexpr RowOrder kOrder = RowOrder::kSingles;
  static constexpr std::int8_t kShift[2] = {0, 1};
  static constexpr bool kSplit = false;
  static constexpr int kChunks = 4, kLow = 1, kHigh = 0;
  static constexpr int slot(int chunk, int i) {
    return 16 * (2 * (chunk & 1) + i) + 8 * (chunk >> 1);
  }

  template <int kTurn>
  static KVQ_INLINE void load(const PlaneCursor& at, int chunk, __m256i (&codes)[2]) {
    const int shift = 4 * (chunk >> 1) + 2 * (chunk & 1);
    const __m256i x = _mm256_srl_epi16(load_packed(at.low), _mm_cvtsi32_si128(shift));
    codes[0] = _mm256_and_si256(x, fill(0x01));
    codes[1] = _mm256_and_si256(x, fill(0x02));
  }
};

template <typename Source, bool kIsKey, int kTurn, int kRows>
KVQ_INLINE void dot_quad(const PlaneCursor& block, int chunk, const std::byte* operand, int stride,
                         __m256i (&sum)[kRows][2]) {
  const PlaneCursor at{block.low + 32 * Source::kLow * kTurn,
                       block.high + 32 * Source::kHigh * kTurn};
  __m256i codes[2];
  Source::template load<kTurn>(at, chunk, codes);
#pragma GCC unroll 2
  for (int row = 0; row < kRows; ++row) {
    std::int32_t four;
    std::memcpy(&four, operand + row * stride + 4 * kTurn, 4);
    const __m256i x = _mm256_set1_epi32(four);
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) {
      const __m256i product =
          kIsKey ? _mm256_maddubs_epi16(codes[i], x) : _mm256_maddubs_epi16(x, codes[i]);
      sum[row][i] = kTurn == 0 ? product : _mm256_add_epi16(sum[row][i], product);
    }
  }
}

// accumulator[row][i] += dot of the chunk's codes with the operand row, over `quads` (a multiple of
// 4) depth quads from `block` on.
//   operand  [kRows] rows of bytes, `stride` bytes apart: int8 for keys, uint8 for values
template <typename Source, bool kIsKey, int kRows>
KVQ_INLINE void dot(PlaneCursor block, int chunk, const std::byte* operand, int stride, int quads,
                    Pacer& pacer, __m256i (&accumulator)[kRows][2]) {
  const __m256i one = _mm256_set1_epi16(1);
  for (int quad = 0; quad < quads; quad += 4) {
    pacer.step();
    __m256i sum[kRows][2];
    dot_quad<Source, kIsKey, 0>(block, chunk, operand, stride, sum);
    dot_quad<Source, kIsKey, 1>(block, chunk, operand, stride, sum);
    dot_quad<Source, kIsKey, 2>(block, chunk, operand, stride, sum);
    dot_quad<Source, kIsKey, 3>(block, chunk, operand, stride, sum);
#pragma GCC unroll 2
    for (int row = 0; row < kRows; ++row) {
#pragma GCC unroll 2
      for (int i = 0; i < 2; ++i) {
        accumulator[row][i] =
            _mm256_add_epi32(accumulator[row][i], _mm256_madd_epi16(sum[row][i], one));
      }
    }
    block.low += 128 * Source::kLow;
    block.high += 128 * Source::kHigh;
    operand += 16;
  }
}

template <typename Source>
KVQ_INLINE PlaneCursor planes_at(const std::byte* block, int quads, int quad) {
  return {block + 32 * Source::kLow * quad,
          block + 32 * Source::kLow * quads + 32 * Source::kHigh * quad};
}

// Results of one query head in a chunk: terms joined (256 high + low), split nibbles joined.
template <typename Source, int kTerms, int kRows>
KVQ_INLINE void join(const __m256i (&accumulator)[kRows][2], int head, __m256 (&out)[2]) {
  __m256i x[2];
#pragma GCC unroll 2
  for (int i = 0; i < 2; ++i) {
    x[i] = kTerms == 1 ? accumulator[head][i]
                       : _mm256_add_epi32(_mm256_slli_epi32(accumulator[0][i], 8),
                                          accumulator[kTerms - 1][i]);
  }
  if (Source::kSplit) x[0] = _mm256_add_epi32(x[0], _mm256_slli_epi32(x[1], 4));
  out[0] = _mm256_cvtepi32_ps(x[0]);
  out[1] = _mm256_cvtepi32_ps(x[1]);
}

// Registers of results that a chunk has.
template <typename Source>
constexpr int kResults = Source::kSplit ? 1 : 2;

// Shifts of the four accumulators of 16 slots, for HalfPageKernel.
template <typename Source, typename Kernel>
void describe(Kernel& kernel) {
  kernel.order = Source::kOrder;
  for (int u = 0; u < 4; ++u) kernel.shift[u] = Source::kShift[u & 1];
}

// Picks `count` vectors of parameters, times `unit` [64] where it is not null.
inline void pick_all(const std::byte* section, const LinePick* picks, int count, const float* unit,
                     float (*out)[64]) {
  for (int n = 0; n < count; ++n) {
    alignas(32) std::uint16_t lines[64];
    std::memcpy(lines, section + picks[n].first_line, 64);
    std::memcpy(lines + 32, section + picks[n].second_line, 64);
    alignas(32) std::uint16_t picked[64];
    for (int i = 0; i < 64; ++i) picked[i] = lines[picks[n].index[i]];
    for (int i = 0; i < 64; i += 8) {
      __m256 x = _mm256_cvtph_ps(_mm_load_si128(reinterpret_cast<const __m128i*>(picked + i)));
      if (unit != nullptr) x = _mm256_mul_ps(x, _mm256_load_ps(unit + i));
      _mm256_store_ps(out[n] + i, x);
    }
  }
}

KVQ_INLINE float largest_lane(__m256 x) {
  __m128 y = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  y = _mm_max_ps(y, _mm_movehl_ps(y, y));
  return _mm_cvtss_f32(_mm_max_ss(y, _mm_movehdup_ps(y)));
}

KVQ_INLINE float sum_of_lanes(__m256 x) {
  __m128 y = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  y = _mm_add_ps(y, _mm_movehl_ps(y, y));
  return _mm_cvtss_f32(_mm_add_ss(y, _mm_movehdup_ps(y)));
}

}  // namespace
}  // namespace kvq
