// The AVX-512 decode kernels as one table, and the softmax between their halves.
#include "kvq/attention/cpu/decode_avx512_dot.h"
#include "kvq/attention/cpu/decode_avx512_kernels.h"

namespace kvq {
namespace {

// 2^x. The fraction in [0, 1) by a polynomial of degree 5 (relative error below 2e-7), the whole
// part by VSCALEF, which gives 0 far below and never a denormal surprise.
KVQ_INLINE __m512 exp2_of(__m512 x) {
  const __m512 f = _mm512_reduce_ps(x, 0x09);  // x - floor(x)
  __m512 y = _mm512_set1_ps(1.8775767e-3F);
  y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(8.9893397e-3F));
  y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(5.5826318e-2F));
  y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(2.4015361e-1F));
  y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(6.9315308e-1F));
  y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(9.9999994e-1F));
  return _mm512_scalef_ps(y, x);
}

// Moves the reference of one head up to the maximum of its 64 scores.
__attribute__((noinline)) void raise_reference(int head, int output_stride, int center_count,
                                               DecodeScratch& scratch) {
  const __m512 factor = _mm512_set1_ps(scratch.factor[head]);
  __m512 largest = _mm512_set1_ps(kNoScore);
  for (int i = 0; i < 64; i += 16) {
    largest =
        _mm512_max_ps(largest, _mm512_mul_ps(_mm512_load_ps(scratch.scores[head] + i), factor));
  }
  const float reference = _mm512_reduce_max_ps(largest) + scratch.offset[head];
  const __m512 scale = exp2_of(_mm512_set1_ps(scratch.reference[head] - reference));
  scratch.reference[head] = reference;
  const auto rescale = [&](float* numbers, int count) {
    for (int i = 0; i < count; i += 16) {
      _mm512_store_ps(numbers + i, _mm512_mul_ps(_mm512_load_ps(numbers + i), scale));
    }
  };
  rescale(scratch.sum[head], 16);
  rescale(scratch.center[head], center_count);
  rescale(scratch.output + head * output_stride, output_stride);
}

}  // namespace

void avx512_softmax(int heads, int output_stride, int center_count, DecodeScratch& scratch) {
  for (int head = 0; head < heads; ++head) {
    float* const scores = scratch.scores[head];
    const __m512 factor = _mm512_set1_ps(scratch.factor[head]);
    __m512 x[4];
    while (true) {
      const __m512 less = _mm512_set1_ps(scratch.reference[head] - scratch.offset[head]);
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) {
        x[i] = _mm512_fmsub_ps(_mm512_load_ps(scores + 16 * i), factor, less);
      }
      const __m512 largest = _mm512_max_ps(_mm512_max_ps(x[0], x[1]), _mm512_max_ps(x[2], x[3]));
      if (_mm512_cmp_ps_mask(largest, _mm512_set1_ps(kReferenceSlack), _CMP_GT_OQ) == 0) break;
      raise_reference(head, output_stride, center_count, scratch);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      x[i] = exp2_of(x[i]);
      _mm512_store_ps(scores + 16 * i, x[i]);
    }
    const __m512 sum = _mm512_add_ps(_mm512_add_ps(x[0], x[1]), _mm512_add_ps(x[2], x[3]));
    _mm512_store_ps(scratch.sum[head], _mm512_add_ps(_mm512_load_ps(scratch.sum[head]), sum));
  }
}

const DecodeKernels kDecodeKernelsAvx512 = {
    avx512_key_kernel, avx512_value_kernel, avx512_quantize_query,
    avx512_softmax,    avx512_exact_keys,   avx512_exact_values,
};

}  // namespace kvq
