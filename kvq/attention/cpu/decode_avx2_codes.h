// Packed planes to bytes with AVX2: the codes of four depths (one quad T) of 16 rows, 8 rows a
// register.
//
// All lanes of a loaded line have the same T, so unpacking is a mask, sometimes a shift. A chunk is
// two registers that share most of that work; slot(chunk, i) is the first of the 8 slots of
// register i. The plane layout's XOR swizzle is undone by the address. Row orders are drawn in
// decode_kernels.h.
//
//   codes      instructions per T and chunk (16 of 64 rows), loads left out
//   1, 2 bits  1 shift, 2 and                       4 bits   1 shift, 2 and
//   5, 6 bits  1 permute, 4 shifts, 4 and, 2 or     8 bits   none
//   3 bits, ternary   none, but once a page 8 and 7
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "kvq/attention/cpu/decode_kernels.h"

namespace kvq {
namespace {

#define KVQ_INLINE inline __attribute__((always_inline))

KVQ_INLINE __m256i fill(int byte) { return _mm256_set1_epi8(static_cast<char>(byte)); }
KVQ_INLINE __m256i load_packed(const std::byte* at) {
  return _mm256_load_si256(reinterpret_cast<const __m256i*>(at));
}

KVQ_INLINE void store_bytes(__m256i x, std::byte* at) {
  _mm256_store_si256(reinterpret_cast<__m256i*>(at), x);
}

// Where a block's planes are read next.
struct PlaneCursor {
  const std::byte* low;
  const std::byte* high;
};

// Codes<bits>: load<kTurn>: a chunk of quad kTurn (mod 4) at the cursor. Register i holds
// code * 2^kShift[i]. kLow, kHigh: widths of the planes.
template <Bits kBits>
struct Codes;

// Widths with a plane of 4 or 8 bits. Chunk: half (g >> 2), half of that (g >> 1 & 1), which is
// packed byte 32 chunk and up. Registers: rows r = 0, 1.
struct QuadCodes {
  static constexpr RowOrder kOrder = RowOrder::kQuads;
  static constexpr std::int8_t kShift[2] = {0, 0};
  static constexpr int slot(int chunk, int i) {
    return 16 * (2 * (chunk >> 1) + i) + 8 * (chunk & 1);
  }
};

template <>
struct Codes<Bits::k4> : QuadCodes {
  static constexpr int kLow = 4, kHigh = 0;

  template <int kTurn>
  static KVQ_INLINE void load(const PlaneCursor& at, int chunk, __m256i (&codes)[2]) {
    const __m256i x = load_packed(at.low + 32 * (chunk ^ kTurn));
    codes[0] = _mm256_and_si256(x, fill(0x0F));
    codes[1] = _mm256_and_si256(_mm256_srli_epi16(x, 4), fill(0x0F));
  }
};

template <>
struct Codes<Bits::k8> : QuadCodes {
  static constexpr int kLow = 8, kHigh = 0;

  template <int kTurn>
  static KVQ_INLINE void load(const PlaneCursor& at, int chunk, __m256i (&codes)[2]) {
    codes[0] = load_packed(at.low + 32 * (chunk ^ kTurn));
    codes[1] = load_packed(at.low + 32 * (chunk ^ kTurn) + 128);
  }
};

// Joins a 4-bit plane with high bits that lie at bits 4 r and up (kMask: where row 1 has them).
template <int kMask>
KVQ_INLINE void join_nibbles(__m256i low, __m256i high, __m256i (&codes)[2]) {
  codes[0] = _mm256_or_si256(_mm256_and_si256(low, fill(0x0F)),
                             _mm256_and_si256(_mm256_slli_epi16(high, 4), fill(kMask)));
  codes[1] = _mm256_or_si256(_mm256_and_si256(_mm256_srli_epi16(low, 4), fill(0x0F)),
                             _mm256_and_si256(high, fill(kMask)));
}

template <>
struct Codes<Bits::k5> : QuadCodes {
  static constexpr int kLow = 4, kHigh = 1;

  template <int kTurn>
  static KVQ_INLINE void load(const PlaneCursor& at, int chunk, __m256i (&codes)[2]) {
    const __m256i word = _mm256_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1);
    const __m256i by_j = _mm256_setr_epi32(0, 1, 2, 3, 0, 1, 2, 3);
    const __m128i bits = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(at.high + 8 * chunk));
    const __m256i high = _mm256_permutevar8x32_epi32(_mm256_castsi128_si256(bits), word);
    join_nibbles<0x10>(load_packed(at.low + 32 * (chunk ^ kTurn)), _mm256_srlv_epi32(high, by_j),
                       codes);
  }
};

// The 2-bit plane's fields in the lanes of a 4-bit plane: bits 4 r and up, rows r = 0, 1.
template <int kTurn>
KVQ_INLINE __m256i pairs_to_quads(const std::byte* quad, int chunk) {
  const __m256i word = _mm256_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3);
  const __m256i by_j = _mm256_setr_epi32(0, 2, 0, 2, 0, 2, 0, 2);
  const std::byte* const at = quad + 16 * (chunk ^ (kTurn & 2));
  const __m128i packed = _mm_load_si128(reinterpret_cast<const __m128i*>(at));
  return _mm256_srlv_epi32(_mm256_permutevar8x32_epi32(_mm256_castsi128_si256(packed), word), by_j);
}

template <>
struct Codes<Bits::k6> : QuadCodes {
  static constexpr int kLow = 4, kHigh = 2;

  template <int kTurn>
  static KVQ_INLINE void load(const PlaneCursor& at, int chunk, __m256i (&codes)[2]) {
    join_nibbles<0x30>(load_packed(at.low + 32 * (chunk ^ kTurn)),
                       pairs_to_quads<kTurn>(at.high, chunk), codes);
  }
};

// Chunk: half (g >> 2), r. Registers: j & 1.
template <>
struct Codes<Bits::k2> {
  static constexpr RowOrder kOrder = RowOrder::kPairs;
  static constexpr std::int8_t kShift[2] = {0, 2};
  static constexpr int kLow = 2, kHigh = 0;
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

// Chunk: r, j >> 1. Registers: j & 1.
template <>
struct Codes<Bits::k1> {
  static constexpr RowOrder kOrder = RowOrder::kSingles;
  static constexpr std::int8_t kShift[2] = {0, 1};
  static constexpr int kLow = 1, kHigh = 0;
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

// Codes that unpack_plain() has made bytes of, [T][chunk][i][32]: ternary, because five T share a
// byte, so that groups of depths may end inside one; 3 bits, because all four chunks share most of
// the work, which is more than several heads' products can hide.
struct PlainBytes {
  static constexpr int kLow = 8, kHigh = 0;

  template <int kTurn>
  static KVQ_INLINE void load(const PlaneCursor& at, int chunk, __m256i (&codes)[2]) {
    codes[0] = load_packed(at.low + 64 * chunk);
    codes[1] = load_packed(at.low + 64 * chunk + 32);
  }
};
template <>
struct Codes<Bits::kTernary> : QuadCodes, PlainBytes {};
// Rows as at 2 bits.
template <>
struct Codes<Bits::k3> : PlainBytes {
  static constexpr RowOrder kOrder = RowOrder::kPairs;
  static constexpr std::int8_t kShift[2] = {0, 0};
  static constexpr int slot(int chunk, int i) {
    return 16 * (2 * (chunk & 1) + i) + 8 * (chunk >> 1);
  }
};
constexpr bool unpacked_first(Bits bits) { return bits == Bits::kTernary || bits == Bits::k3; }

// Shifts of the four accumulators of 16 slots, for HalfPageKernel.
template <typename Source, typename Kernel>
void describe(Kernel& kernel) {
  kernel.order = Source::kOrder;
  for (int u = 0; u < 4; ++u) kernel.shift[u] = Source::kShift[u & 1];
}

// One register of base-3 bytes to the codes of its five quads. A byte is v = 256 / 243 of the
// number, rounded up: the top digit is 3 v >> 8, and v <- 3 v mod 256 brings up the next.
KVQ_INLINE void unpack_trits(__m256i v, std::byte* out) {
#pragma GCC unroll 5
  for (int k = 0; k < 5; ++k) {
    const __m256i one = fill(1);
    const __m256i digit = _mm256_add_epi8(_mm256_min_epu8(_mm256_subs_epu8(v, fill(85)), one),
                                          _mm256_min_epu8(_mm256_subs_epu8(v, fill(170)), one));
    store_bytes(digit, out + 256 * k);
    v = _mm256_add_epi8(v, _mm256_add_epi8(v, v));
  }
}

// A ternary block of `quads` quads as bytes, [quads][chunk][i][32].
inline void unpack_ternary(const std::byte* planes, int quads, std::byte* out) {
  const int groups = quads / 5;
  for (int group = 0; group < groups; ++group) {
    for (int n = 0; n < 8; ++n) {
      const std::byte* const row = planes + 256 * group + 128 * (n & 1);
      unpack_trits(load_packed(row + 32 * ((n >> 1) ^ (group & 3))), out + 1280 * group + 32 * n);
    }
  }
  for (int quad = 5 * groups; quad < quads; ++quad) {
    const std::byte* const packed = planes + 256 * groups + 64 * (quad - 5 * groups);
    for (int chunk = 0; chunk < 4; ++chunk) {
      const __m256i fields =
          (quad & 2) != 0 ? pairs_to_quads<2>(packed, chunk) : pairs_to_quads<0>(packed, chunk);
      std::byte* const row = out + 256 * quad + 64 * chunk;
      store_bytes(_mm256_and_si256(fields, fill(3)), row);
      store_bytes(_mm256_and_si256(_mm256_srli_epi16(fields, 4), fill(3)), row + 32);
    }
  }
}

// A 3-bit block as bytes: bits 0, 1 from the 2-bit plane, bit 2 from the 1-bit plane, whose word g
// is spread over the lanes 2 g + (j >> 1). Both rows r of a byte are joined at once.
inline void unpack_three(const std::byte* planes, int quads, std::byte* out) {
  const __m256i word = _mm256_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3);
  const __m256i by_pair = _mm256_setr_epi32(0, 2, 0, 2, 0, 2, 0, 2);
  const std::byte* const high_plane = planes + 64 * quads;
  for (int quad = 0; quad < quads; ++quad) {
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      const __m256i low = load_packed(planes + 64 * quad + 32 * (half ^ ((quad >> 1) & 1)));
      const __m128i bits =
          _mm_load_si128(reinterpret_cast<const __m128i*>(high_plane + 32 * quad + 16 * half));
      const __m256i high = _mm256_srlv_epi32(
          _mm256_permutevar8x32_epi32(_mm256_castsi128_si256(bits), word), by_pair);
      const __m256i even =
          _mm256_or_si256(_mm256_and_si256(low, fill(0x33)),
                          _mm256_and_si256(_mm256_slli_epi16(high, 2), fill(0x44)));
      const __m256i odd = _mm256_or_si256(_mm256_and_si256(_mm256_srli_epi16(low, 2), fill(0x33)),
                                          _mm256_and_si256(_mm256_slli_epi16(high, 1), fill(0x44)));
      std::byte* const rows = out + 256 * quad + 128 * half;
      store_bytes(_mm256_and_si256(even, fill(7)), rows);
      store_bytes(_mm256_and_si256(odd, fill(7)), rows + 32);
      store_bytes(_mm256_and_si256(_mm256_srli_epi16(even, 4), fill(7)), rows + 64);
      store_bytes(_mm256_and_si256(_mm256_srli_epi16(odd, 4), fill(7)), rows + 96);
    }
  }
}

template <Bits kBits>
void unpack_plain(const std::byte* planes, int quads, std::byte* out) {
  if constexpr (kBits == Bits::kTernary) {
    unpack_ternary(planes, quads, out);
  } else {
    unpack_three(planes, quads, out);
  }
}

}  // namespace
}  // namespace kvq
