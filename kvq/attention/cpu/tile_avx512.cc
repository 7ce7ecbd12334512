// Tile kernels for AVX-512 (F, BW, DQ).
#include <immintrin.h>

#include "kvq/attention/cpu/tile_kernels.h"
#include "kvq/attention/cpu/tile_sets.h"

namespace kvq {
namespace {

struct Vector {
  using Floats = __m512;
  using Words = __m512i;
  static constexpr int kWidth = 16;
  static constexpr int kRows = 6;
  static constexpr int kVectors = 4;

  static Floats set(float x) { return _mm512_set1_ps(x); }
  static Floats load(const float* p) { return _mm512_loadu_ps(p); }
  static void store(float* p, Floats x) { _mm512_storeu_ps(p, x); }
  static Floats load_half(const std::uint16_t* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static Floats add(Floats a, Floats b) { return _mm512_add_ps(a, b); }
  static Floats subtract(Floats a, Floats b) { return _mm512_sub_ps(a, b); }
  static Floats multiply(Floats a, Floats b) { return _mm512_mul_ps(a, b); }
  static Floats multiply_add(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
  static Floats max(Floats a, Floats b) { return _mm512_max_ps(a, b); }
  static float reduce_max(Floats x) { return _mm512_reduce_max_ps(x); }
  static float reduce_add(Floats x) { return _mm512_reduce_add_ps(x); }
  static Floats power_of_two(Floats x) {
    const __m512i n = _mm512_slli_epi32(_mm512_castps_si512(x), 23);
    return _mm512_castsi512_ps(_mm512_add_epi32(n, _mm512_set1_epi32(127 << 23)));
  }
  static void transpose(Floats* x) {
    __m512 pair[16];
    for (int i = 0; i < 16; i += 2) {
      pair[i] = _mm512_unpacklo_ps(x[i], x[i + 1]);
      pair[i + 1] = _mm512_unpackhi_ps(x[i], x[i + 1]);
    }
    __m512 four[16];  // four[k]: columns k % 4 + 4 * lane of rows 4 * (k / 4) .., lane = 128 bits
    for (int i = 0; i < 16; i += 4) {
      four[i] = _mm512_shuffle_ps(pair[i], pair[i + 2], 0x44);
      four[i + 1] = _mm512_shuffle_ps(pair[i], pair[i + 2], 0xee);
      four[i + 2] = _mm512_shuffle_ps(pair[i + 1], pair[i + 3], 0x44);
      four[i + 3] = _mm512_shuffle_ps(pair[i + 1], pair[i + 3], 0xee);
    }
    for (int i = 0; i < 4; ++i) {
      const __m512 low01 = _mm512_shuffle_f32x4(four[i], four[i + 4], 0x44);
      const __m512 low23 = _mm512_shuffle_f32x4(four[i], four[i + 4], 0xee);
      const __m512 high01 = _mm512_shuffle_f32x4(four[i + 8], four[i + 12], 0x44);
      const __m512 high23 = _mm512_shuffle_f32x4(four[i + 8], four[i + 12], 0xee);
      x[i] = _mm512_shuffle_f32x4(low01, high01, 0x88);
      x[i + 4] = _mm512_shuffle_f32x4(low01, high01, 0xdd);
      x[i + 8] = _mm512_shuffle_f32x4(low23, high23, 0x88);
      x[i + 12] = _mm512_shuffle_f32x4(low23, high23, 0xdd);
    }
  }

  static Words set_words(std::uint32_t x) { return _mm512_set1_epi32(static_cast<int>(x)); }
  static Words load_words(const void* p) { return _mm512_loadu_si512(p); }
  static void store_words(std::uint32_t* p, Words x) { _mm512_storeu_si512(p, x); }
  template <int kPlaneWidth>
  static Words gather(const std::uint32_t* words, const std::int32_t* index) {
    const __m512i i = load_words(index);
    if constexpr (kPlaneWidth == 1) {
      const __m256i eight = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(words));
      return _mm512_permutexvar_epi32(i, _mm512_castsi256_si512(eight));
    } else if constexpr (kPlaneWidth == 2) {
      return _mm512_permutexvar_epi32(i, load_words(words));
    } else if constexpr (kPlaneWidth == 4) {
      return _mm512_permutex2var_epi32(load_words(words), i, load_words(words + 16));
    } else {
      const __m512i low = _mm512_permutex2var_epi32(load_words(words), i, load_words(words + 16));
      const __m512i high =
          _mm512_permutex2var_epi32(load_words(words + 32), i, load_words(words + 48));
      return _mm512_mask_mov_epi32(low, _mm512_test_epi32_mask(i, _mm512_set1_epi32(32)), high);
    }
  }
  static Words bit_and(Words a, Words b) { return _mm512_and_si512(a, b); }
  static Words bit_or(Words a, Words b) { return _mm512_or_si512(a, b); }
  static Words add_words(Words a, Words b) { return _mm512_add_epi32(a, b); }
  static Words shift_right_each(Words x, Words by) { return _mm512_srlv_epi32(x, by); }
  template <int kBits>
  static Words shift_right(Words x) {
    return _mm512_srli_epi32(x, kBits);
  }
  template <int kBits>
  static Words shift_left(Words x) {
    return _mm512_slli_epi32(x, kBits);
  }
  template <int kByte>
  static Floats byte_value(Words x) {
    const __m512i shifted = _mm512_srli_epi32(x, 8 * kByte);
    return _mm512_cvtepi32_ps(_mm512_and_si512(shifted, _mm512_set1_epi32(0xff)));
  }
};

}  // namespace

const TileKernels kTileKernelsAvx512 = make_tile_kernels<Vector>();

}  // namespace kvq
