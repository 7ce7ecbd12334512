// The AVX2 decode kernels as one table, and the softmax between their halves.
#include "kvq/attention/cpu/decode_avx2_dot.h"
#include "kvq/attention/cpu/decode_avx2_kernels.h"

namespace kvq {
namespace {

// 2^x for x <= 127: the fraction in [0, 1) by a polynomial of degree 5 (relative error below 2e-7),
// the whole part into the exponent; 0 below 2^-126.
KVQ_INLINE __m256 exp2_of(__m256 x) {
  const __m256 least = _mm256_set1_ps(-127);
  const __m256 bounded = _mm256_max_ps(x, least);
  const __m256 whole = _mm256_floor_ps(bounded);
  const __m256 f = _mm256_sub_ps(bounded, whole);
  __m256 y = _mm256_set1_ps(1.8775767e-3F);
  y = _mm256_fmadd_ps(y, f, _mm256_set1_ps(8.9893397e-3F));
  y = _mm256_fmadd_ps(y, f, _mm256_set1_ps(5.5826318e-2F));
  y = _mm256_fmadd_ps(y, f, _mm256_set1_ps(2.4015361e-1F));
  y = _mm256_fmadd_ps(y, f, _mm256_set1_ps(6.9315308e-1F));
  y = _mm256_fmadd_ps(y, f, _mm256_set1_ps(9.9999994e-1F));
  // Exponent field whole + 127: 0 at the least, which makes the factor zero.
  const __m256i exponent =
      _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(whole), _mm256_set1_epi32(127)), 23);
  return _mm256_mul_ps(y, _mm256_castsi256_ps(exponent));
}

// Moves the reference of one head up to the maximum of its 64 scores.
__attribute__((noinline)) void raise_reference(int head, int output_stride, int center_count,
                                               DecodeScratch& scratch) {
  const __m256 factor = _mm256_set1_ps(scratch.factor[head]);
  __m256 largest = _mm256_set1_ps(kNoScore);
  for (int i = 0; i < 64; i += 8) {
    largest =
        _mm256_max_ps(largest, _mm256_mul_ps(_mm256_load_ps(scratch.scores[head] + i), factor));
  }
  const float reference = largest_lane(largest) + scratch.offset[head];
  const __m256 scale = exp2_of(_mm256_set1_ps(scratch.reference[head] - reference));
  scratch.reference[head] = reference;
  const auto rescale = [&](float* numbers, int count) {
    for (int i = 0; i < count; i += 8) {
      _mm256_store_ps(numbers + i, _mm256_mul_ps(_mm256_load_ps(numbers + i), scale));
    }
  };
  rescale(scratch.sum[head], 16);
  rescale(scratch.center[head], center_count);
  rescale(scratch.output + head * output_stride, output_stride);
}

}  // namespace

void avx2_softmax(int heads, int output_stride, int center_count, DecodeScratch& scratch) {
  for (int head = 0; head < heads; ++head) {
    float* const scores = scratch.scores[head];
    const __m256 factor = _mm256_set1_ps(scratch.factor[head]);
    __m256 x[8];
    while (true) {
      const __m256 less = _mm256_set1_ps(scratch.reference[head] - scratch.offset[head]);
      __m256 largest = _mm256_set1_ps(kNoScore);
#pragma GCC unroll 8
      for (int i = 0; i < 8; ++i) {
        x[i] = _mm256_fmsub_ps(_mm256_load_ps(scores + 8 * i), factor, less);
        largest = _mm256_max_ps(largest, x[i]);
      }
      const __m256 above = _mm256_cmp_ps(largest, _mm256_set1_ps(kReferenceSlack), _CMP_GT_OQ);
      if (_mm256_movemask_ps(above) == 0) break;
      raise_reference(head, output_stride, center_count, scratch);
    }
    __m256 sum = _mm256_load_ps(scratch.sum[head]);
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) {
      x[i] = exp2_of(x[i]);
      sum = _mm256_add_ps(sum, x[i]);
      _mm256_store_ps(scores + 8 * i, x[i]);
    }
    _mm256_store_ps(scratch.sum[head], sum);
  }
}

const DecodeKernels kDecodeKernelsAvx2 = {
    avx2_key_kernel, avx2_value_kernel, avx2_quantize_query,
    avx2_softmax,    avx2_exact_keys,   avx2_exact_values,
};

}  // namespace kvq
