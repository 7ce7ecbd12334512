// Tile kernels for AVX2, FMA and F16C.
#include <immintrin.h>

#include "kvq/attention/cpu/tile_kernels.h"
#include "kvq/attention/cpu/tile_sets.h"

namespace kvq {
namespace {

struct Vector {
  using Floats = __m256;
  using Words = __m256i;
  static constexpr int kWidth = 8;
  static constexpr int kRows = 6;
  static constexpr int kVectors = 2;

  static Floats set(float x) { return _mm256_set1_ps(x); }
  static Floats load(const float* p) { return _mm256_loadu_ps(p); }
  static void store(float* p, Floats x) { _mm256_storeu_ps(p, x); }
  static Floats load_half(const std::uint16_t* p) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  static Floats add(Floats a, Floats b) { return _mm256_add_ps(a, b); }
  static Floats subtract(Floats a, Floats b) { return _mm256_sub_ps(a, b); }
  static Floats multiply(Floats a, Floats b) { return _mm256_mul_ps(a, b); }
  static Floats multiply_add(Floats a, Floats b, Floats c) { return _mm256_fmadd_ps(a, b, c); }
  static Floats max(Floats a, Floats b) { return _mm256_max_ps(a, b); }
  static float reduce_max(Floats x) {
    __m128 y = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    y = _mm_max_ps(y, _mm_movehl_ps(y, y));
    return _mm_cvtss_f32(_mm_max_ss(y, _mm_movehdup_ps(y)));
  }
  static float reduce_add(Floats x) {
    __m128 y = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    y = _mm_add_ps(y, _mm_movehl_ps(y, y));
    return _mm_cvtss_f32(_mm_add_ss(y, _mm_movehdup_ps(y)));
  }
  static Floats power_of_two(Floats x) {
    const __m256i n = _mm256_slli_epi32(_mm256_castps_si256(x), 23);
    return _mm256_castsi256_ps(_mm256_add_epi32(n, _mm256_set1_epi32(127 << 23)));
  }
  static void transpose(Floats* x) {
    __m256 pair[8];
    for (int i = 0; i < 8; i += 2) {
      pair[i] = _mm256_unpacklo_ps(x[i], x[i + 1]);
      pair[i + 1] = _mm256_unpackhi_ps(x[i], x[i + 1]);
    }
    __m256 four[8];  // four[k]: columns k % 4 and k % 4 + 4 of rows 4 * (k / 4) ..
    for (int i = 0; i < 8; i += 4) {
      four[i] = _mm256_shuffle_ps(pair[i], pair[i + 2], 0x44);
      four[i + 1] = _mm256_shuffle_ps(pair[i], pair[i + 2], 0xee);
      four[i + 2] = _mm256_shuffle_ps(pair[i + 1], pair[i + 3], 0x44);
      four[i + 3] = _mm256_shuffle_ps(pair[i + 1], pair[i + 3], 0xee);
    }
    for (int i = 0; i < 4; ++i) {
      x[i] = _mm256_permute2f128_ps(four[i], four[i + 4], 0x20);
      x[i + 4] = _mm256_permute2f128_ps(four[i], four[i + 4], 0x31);
    }
  }

  static Words set_words(std::uint32_t x) { return _mm256_set1_epi32(static_cast<int>(x)); }
  static Words load_words(const void* p) {
    return _mm256_loadu_si256(static_cast<const __m256i*>(p));
  }
  static void store_words(std::uint32_t* p, Words x) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), x);
  }
  // words[i], bits 0 to 3 of every i
  static Words pick_of_16(const std::uint32_t* words, Words i) {
    const __m256i low = _mm256_permutevar8x32_epi32(load_words(words), i);
    const __m256i high = _mm256_permutevar8x32_epi32(load_words(words + 8), i);
    const __m256 choice = _mm256_castsi256_ps(_mm256_slli_epi32(i, 28));
    return _mm256_castps_si256(
        _mm256_blendv_ps(_mm256_castsi256_ps(low), _mm256_castsi256_ps(high), choice));
  }
  // Eight rows are two rows r of four neighbouring g: their words lie in one vector at 1 and 2
  // bits, in an aligned pair of vectors at 4 bits, in such a pair for each r at 8 bits.
  template <int kPlaneWidth>
  static Words gather(const std::uint32_t* words, const std::int32_t* index) {
    const __m256i i = load_words(index);
    if constexpr (kPlaneWidth <= 2) {
      return _mm256_permutevar8x32_epi32(load_words(words + (index[0] & 8)), i);
    } else {
      const std::uint32_t* pair = words + (index[0] & 16);
      const __m256i even = pick_of_16(pair, i);
      if constexpr (kPlaneWidth == 4) return even;
      return _mm256_blend_epi32(even, pick_of_16(pair + 32, i), 0xaa);
    }
  }
  static Words bit_and(Words a, Words b) { return _mm256_and_si256(a, b); }
  static Words bit_or(Words a, Words b) { return _mm256_or_si256(a, b); }
  static Words add_words(Words a, Words b) { return _mm256_add_epi32(a, b); }
  static Words shift_right_each(Words x, Words by) { return _mm256_srlv_epi32(x, by); }
  template <int kBits>
  static Words shift_right(Words x) {
    return _mm256_srli_epi32(x, kBits);
  }
  template <int kBits>
  static Words shift_left(Words x) {
    return _mm256_slli_epi32(x, kBits);
  }
  template <int kByte>
  static Floats byte_value(Words x) {
    const __m256i shifted = _mm256_srli_epi32(x, 8 * kByte);
    return _mm256_cvtepi32_ps(_mm256_and_si256(shifted, _mm256_set1_epi32(0xff)));
  }
};

}  // namespace

const TileKernels kTileKernelsAvx2 = make_tile_kernels<Vector>();

}  // namespace kvq
