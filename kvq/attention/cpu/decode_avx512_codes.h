// Packed planes to dot-product operands with AVX-512: the codes of four depths (one quad T) of all
// 64 rows as bytes, 16 rows a register, four registers u.
//
// All lanes of a loaded line have the same T, so unpacking is a mask, sometimes a shift. Fields
// that fit stay where they lie and count as code * 2^shift(u). The plane layout's XOR swizzle is
// undone by the address (T & 2) and by exchanging the halves of a register (T & 1; 2 bits: T & 2).
// Row orders are drawn in decode_kernels.h.
//
//   codes   instructions per T and 64 rows, loads left out
//   1 bit   1 shift, 4 and                 4 bits  4 and, V: 2 shifts; half of the T 2 swaps
//   2 bits  4 and, V: 1 shift; 1/2 swap    8 bits  K: none, V: 4 xor; half of the T 4 swaps
//   3 bits  2 permutes or shifts, 3 shifts, 2 ternary logic, 4 and
//   5, 6 bits  2 permutes, 2 variable shifts, 4 shifts, 4 ternary logic, 4 and; 1 swap
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "kvq/attention/cpu/decode_kernels.h"

namespace kvq {
namespace {

#define KVQ_INLINE inline __attribute__((always_inline))

// Written as assembly because GCC 12 takes a function that only prefetches for pure and drops it.
KVQ_INLINE void prefetch_line(const std::byte* address) {
  asm volatile("prefetcht0 %0" : : "m"(*reinterpret_cast<const char*>(address)));
}

// Where a block's planes are read next.
struct PlaneCursor {
  const std::byte* low;
  const std::byte* high;
};

KVQ_INLINE __m512i swap_halves(__m512i x) { return _mm512_shuffle_i64x2(x, x, 0x4E); }
KVQ_INLINE __m512i fill(int byte) { return _mm512_set1_epi8(static_cast<char>(byte)); }

// 64 packed bytes of quad `kTurn` (mod 4) of a plane of 4 or 8 bits, chunks g = 4 half .. 4 half
// + 3.
template <int kTurn>
KVQ_INLINE __m512i load_chunks(const std::byte* quad, int half) {
  const __m512i x = _mm512_load_si512(quad + 64 * (half ^ (kTurn >> 1)));
  return (kTurn & 1) != 0 ? swap_halves(x) : x;
}

// The same 32 bytes (1-bit plane) in both halves.
KVQ_INLINE __m512i load_twice(const std::byte* quad) {
  return _mm512_broadcast_i64x4(_mm256_load_si256(reinterpret_cast<const __m256i*>(quad)));
}

// Codes<bits, is_key>: kOrder, kShift, low and high plane widths, and
// load<kTurn, kFirst, kCount>: registers kFirst .. kFirst + kCount - 1 of quad kTurn (mod 4) at the
// cursor. Keys are unsigned bytes, values signed ones (the operand types of VPDPBUSD); 8-bit values
// come as code - 128.
template <Bits kBits, bool kIsKey>
struct Codes;

template <bool kIsKey>
struct Codes<Bits::k8, kIsKey> {
  static constexpr RowOrder kOrder = RowOrder::kQuads;
  static constexpr std::int8_t kShift[4] = {0, 0, 0, 0};
  static constexpr int kLow = 8, kHigh = 0;

  template <int kTurn, int kFirst, int kCount>
  static KVQ_INLINE void load(const PlaneCursor& at, __m512i (&codes)[kCount]) {
#pragma GCC unroll 4
    for (int i = 0; i < kCount; ++i) {
      const int u = kFirst + i;
      codes[i] = load_chunks<kTurn>(at.low + 128 * (u & 1), u >> 1);
      if (!kIsKey) codes[i] = _mm512_xor_si512(codes[i], fill(0x80));
    }
  }
};

template <bool kIsKey>
struct Codes<Bits::k4, kIsKey> {
  static constexpr RowOrder kOrder = RowOrder::kQuads;
  static constexpr std::int8_t kShift[4] = {0, kIsKey ? 4 : 0, 0, kIsKey ? 4 : 0};
  static constexpr int kLow = 4, kHigh = 0;

  template <int kTurn, int kFirst, int kCount>
  static KVQ_INLINE void load(const PlaneCursor& at, __m512i (&codes)[kCount]) {
    static_assert(kFirst % 2 == 0 && kCount % 2 == 0);
#pragma GCC unroll 2
    for (int i = 0; i < kCount; i += 2) {
      const __m512i x = load_chunks<kTurn>(at.low, (kFirst + i) >> 1);
      codes[i] = _mm512_and_si512(x, fill(0x0F));
      codes[i + 1] = kIsKey ? _mm512_and_si512(x, fill(0xF0))
                            : _mm512_and_si512(_mm512_srli_epi16(x, 4), fill(0x0F));
    }
  }
};

template <bool kIsKey>
struct Codes<Bits::k2, kIsKey> {
  static constexpr RowOrder kOrder = RowOrder::kPairs;
  static constexpr std::int8_t kShift[4] = {0, 2, 4, kIsKey ? 6 : 4};
  static constexpr int kLow = 2, kHigh = 0;

  template <int kTurn, int kFirst, int kCount>
  static KVQ_INLINE void load(const PlaneCursor& at, __m512i (&codes)[kCount]) {
    __m512i x = _mm512_load_si512(at.low);
    if ((kTurn & 2) != 0) x = swap_halves(x);
#pragma GCC unroll 4
    for (int i = 0; i < kCount; ++i) {
      const int u = kFirst + i;
      codes[i] = !kIsKey && u == 3 ? _mm512_and_si512(_mm512_srli_epi16(x, 2), fill(0x30))
                                   : _mm512_and_si512(x, fill(3 << (2 * u)));
    }
  }
};

template <bool kIsKey>
struct Codes<Bits::k1, kIsKey> {
  static constexpr RowOrder kOrder = RowOrder::kSingles;
  static constexpr std::int8_t kShift[4] = {0, 1, 2, 3};
  static constexpr int kLow = 1, kHigh = 0;

  template <int kTurn, int kFirst, int kCount>
  static KVQ_INLINE void load(const PlaneCursor& at, __m512i (&codes)[kCount]) {
    const __m512i by_row = _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 4, 4, 4, 4, 4, 4, 4, 4);
    const __m512i x = _mm512_srlv_epi32(load_twice(at.low), by_row);
#pragma GCC unroll 4
    for (int i = 0; i < kCount; ++i) codes[i] = _mm512_and_si512(x, fill(1 << (kFirst + i)));
  }
};

// Bits 0..1 from the 2-bit plane, read straight into the lanes of the 1-bit plane; bit 2 from that.
// Accumulators 0, 2 (j even) join fields where they lie, 1, 3 after a shift by 2 (and 1).
template <bool kIsKey>
struct Codes<Bits::k3, kIsKey> {
  static constexpr RowOrder kOrder = RowOrder::kHalves;
  static constexpr std::int8_t kShift[4] = {0, 0, 4, 4};
  static constexpr int kLow = 2, kHigh = 1;

  template <int kTurn, int kFirst, int kCount>
  static KVQ_INLINE void load(const PlaneCursor& at, __m512i (&codes)[kCount]) {
    const __m512i lanes =
        (kTurn & 2) != 0 ? _mm512_setr_epi32(8, 10, 12, 14, 0, 2, 4, 6, 9, 11, 13, 15, 1, 3, 5, 7)
                         : _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15);
    const __m512i by_half = _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 2, 2, 2, 2, 2, 2, 2, 2);
    const __m512i low = _mm512_permutexvar_epi32(lanes, _mm512_load_si512(at.low));
    const __m512i high = _mm512_srlv_epi32(load_twice(at.high), by_half);
    // Takes the bits of 0x44 (bit 2 of both nibbles) from the second operand.
    const __m512i even =
        _mm512_ternarylogic_epi32(fill(0x44), _mm512_slli_epi16(high, 2), low, 0xCA);
    const __m512i odd = _mm512_ternarylogic_epi32(fill(0x44), _mm512_slli_epi16(high, 1),
                                                  _mm512_srli_epi16(low, 2), 0xCA);
#pragma GCC unroll 4
    for (int i = 0; i < kCount; ++i) {
      const int u = kFirst + i;
      codes[i] = _mm512_and_si512((u & 1) != 0 ? odd : even, fill((u & 2) != 0 ? 0x70 : 0x07));
    }
  }
};

// Joins a 4-bit plane with high bits that lie at bit 4 r of the same lanes.
template <int kMask>
KVQ_INLINE void join_nibbles(__m512i low, __m512i high, __m512i& row0, __m512i& row1) {
  const __m512i nibble = fill(0x0F);
  row0 = _mm512_and_si512(_mm512_ternarylogic_epi32(nibble, low, _mm512_slli_epi16(high, 4), 0xCA),
                          fill(kMask));
  row1 = _mm512_and_si512(_mm512_ternarylogic_epi32(nibble, _mm512_srli_epi16(low, 4), high, 0xCA),
                          fill(kMask));
}

template <bool kIsKey>
struct Codes<Bits::k5, kIsKey> {
  static constexpr RowOrder kOrder = RowOrder::kQuads;
  static constexpr std::int8_t kShift[4] = {0, 0, 0, 0};
  static constexpr int kLow = 4, kHigh = 1;

  template <int kTurn, int kFirst, int kCount>
  static KVQ_INLINE void load(const PlaneCursor& at, __m512i (&codes)[kCount]) {
    static_assert(kFirst % 2 == 0 && kCount % 2 == 0);
    const __m512i group = _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
    const __m512i by_j = _mm512_setr_epi32(0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3);
    const __m512i bits = load_twice(at.high);
#pragma GCC unroll 2
    for (int i = 0; i < kCount; i += 2) {
      const int half = (kFirst + i) >> 1;
      const __m512i lanes = _mm512_add_epi32(group, _mm512_set1_epi32(4 * half));
      const __m512i high = _mm512_srlv_epi32(_mm512_permutexvar_epi32(lanes, bits), by_j);
      join_nibbles<0x1F>(load_chunks<kTurn>(at.low, half), high, codes[i], codes[i + 1]);
    }
  }
};

// The 2-bit plane's fields of lane (g, j): bits 4 r and up, rows r = 0, 1.
template <int kTurn>
KVQ_INLINE __m512i pairs_to_quads(__m512i packed, int half) {
  const __m512i word = _mm512_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7);
  const __m512i by_j = _mm512_setr_epi32(0, 2, 0, 2, 0, 2, 0, 2, 0, 2, 0, 2, 0, 2, 0, 2);
  const int first = 8 * (half ^ (kTurn >> 1));
  const __m512i lanes = _mm512_add_epi32(word, _mm512_set1_epi32(first));
  return _mm512_srlv_epi32(_mm512_permutexvar_epi32(lanes, packed), by_j);
}

template <bool kIsKey>
struct Codes<Bits::k6, kIsKey> {
  static constexpr RowOrder kOrder = RowOrder::kQuads;
  static constexpr std::int8_t kShift[4] = {0, 0, 0, 0};
  static constexpr int kLow = 4, kHigh = 2;

  template <int kTurn, int kFirst, int kCount>
  static KVQ_INLINE void load(const PlaneCursor& at, __m512i (&codes)[kCount]) {
    static_assert(kFirst % 2 == 0 && kCount % 2 == 0);
    const __m512i packed = _mm512_load_si512(at.high);
#pragma GCC unroll 2
    for (int i = 0; i < kCount; i += 2) {
      const int half = (kFirst + i) >> 1;
      join_nibbles<0x3F>(load_chunks<kTurn>(at.low, half), pairs_to_quads<kTurn>(packed, half),
                         codes[i], codes[i + 1]);
    }
  }
};

// Ternary codes are unpacked to bytes beforehand (unpack_ternary), [T][u][64]: five T share a byte,
// so groups of depths may end inside a byte.
template <bool kIsKey>
struct Codes<Bits::kTernary, kIsKey> {
  static constexpr RowOrder kOrder = RowOrder::kQuads;
  static constexpr std::int8_t kShift[4] = {0, 0, 0, 0};
  static constexpr int kLow = 8, kHigh = 0;

  template <int kTurn, int kFirst, int kCount>
  static KVQ_INLINE void load(const PlaneCursor& at, __m512i (&codes)[kCount]) {
#pragma GCC unroll 4
    for (int i = 0; i < kCount; ++i) codes[i] = _mm512_load_si512(at.low + 64 * (kFirst + i));
  }
};

// One register of base-3 bytes to the codes of its five quads. A byte is v = 256 / 243 of the
// number, rounded up: the top digit is 3 v >> 8, and v <- 3 v mod 256 brings up the next.
KVQ_INLINE void unpack_trits(__m512i v, std::byte* out) {
#pragma GCC unroll 5
  for (int k = 0; k < 5; ++k) {
    const __m512i one = fill(1);
    const __m512i digit = _mm512_add_epi8(_mm512_min_epu8(_mm512_subs_epu8(v, fill(85)), one),
                                          _mm512_min_epu8(_mm512_subs_epu8(v, fill(170)), one));
    _mm512_store_si512(out + 256 * k, digit);
    v = _mm512_add_epi8(v, _mm512_add_epi8(v, v));
  }
}

// A ternary block of `quads` quads as bytes, [quads][u][64].
inline void unpack_ternary(const std::byte* planes, int quads, std::byte* out) {
  const int groups = quads / 5;
  for (int group = 0; group < groups; ++group) {
    for (int u = 0; u < 4; ++u) {
      const std::byte* quad = planes + 256 * group + 128 * (u & 1);
      __m512i v = _mm512_load_si512(quad + 64 * ((u >> 1) ^ ((group >> 1) & 1)));
      if ((group & 1) != 0) v = swap_halves(v);
      unpack_trits(v, out + 1280 * group + 64 * u);
    }
  }
  for (int quad = 5 * groups; quad < quads; ++quad) {
    const __m512i packed = _mm512_load_si512(planes + 256 * groups + 64 * (quad - 5 * groups));
    for (int half = 0; half < 2; ++half) {
      const __m512i fields =
          (quad & 2) != 0 ? pairs_to_quads<2>(packed, half) : pairs_to_quads<0>(packed, half);
      std::byte* const row = out + 256 * quad + 128 * half;
      _mm512_store_si512(row, _mm512_and_si512(fields, fill(3)));
      _mm512_store_si512(row + 64, _mm512_and_si512(_mm512_srli_epi16(fields, 4), fill(3)));
    }
  }
}

}  // namespace
}  // namespace kvq
