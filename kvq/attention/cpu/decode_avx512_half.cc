// Unquantized keys and values with AVX-512: fp16 pages (16-bit formats) and exact rows.
//
// Pages are depth-major blocks, [depth][64 rows]: a line of the page is converted (VCVTPH2PS) and
// multiplied by one number of each query head, so lanes are rows and nothing is summed across
// lanes. Per depth of 64 rows and 4 heads: 4 conversions, 16 FMA = 8 cycles; bound by memory up to
// 8 heads.
//
// Exact rows are token-major, [token][head_dim]. Keys: tiles of 16 (head, token) pairs, whose 16
// accumulators are summed across lanes by one transposition. Values: 64 channels of 4 heads a time.
#include "kvq/attention/cpu/decode_avx512_dot.h"
#include "kvq/attention/cpu/decode_avx512_kernels.h"

namespace kvq {
namespace {

KVQ_INLINE __m512 load_half(const void* at) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(static_cast<const __m256i*>(at)));
}

constexpr int kSixteen = 16 * static_cast<int>(sizeof(Half));  // bytes of one register's numbers
constexpr int kLineBytes = kBlockRows * static_cast<int>(sizeof(Half));  // one depth of a block

// scores[head][rows of the pass] = sum over depths of q[head][depth] * page[depth][row].
template <int kHeads, int kFirst>
KVQ_INLINE void half_key_pass(const std::byte* line, int depth, const float* query, int stride,
                              float (*scores)[64], Pacer& pacer) {
  constexpr int kCount = pass_width(kHeads);
  __m512 sum[kHeads][kCount];
#pragma GCC unroll 8
  for (int head = 0; head < kHeads; ++head) {
#pragma GCC unroll 4
    for (int i = 0; i < kCount; ++i) sum[head][i] = _mm512_setzero_ps();
  }
  for (int d = 0; d < depth; d += 2) {
    pacer.step();
#pragma GCC unroll 2
    for (int k = 0; k < 2; ++k) {
      __m512 x[kCount];
#pragma GCC unroll 4
      for (int i = 0; i < kCount; ++i) {
        x[i] = load_half(line + kLineBytes * (d + k) + kSixteen * (kFirst + i));
      }
#pragma GCC unroll 8
      for (int head = 0; head < kHeads; ++head) {
        const __m512 q = _mm512_set1_ps(query[head * stride + d + k]);
#pragma GCC unroll 4
        for (int i = 0; i < kCount; ++i) sum[head][i] = _mm512_fmadd_ps(x[i], q, sum[head][i]);
      }
    }
  }
#pragma GCC unroll 8
  for (int head = 0; head < kHeads; ++head) {
#pragma GCC unroll 4
    for (int i = 0; i < kCount; ++i) {
      _mm512_store_ps(scores[head] + 16 * (kFirst + i), sum[head][i]);
    }
  }
}

template <int kHeads>
__attribute__((noinline)) void half_key_block(const std::byte* page, int depth, const float* query,
                                              int stride, float (*scores)[64], Pacer& pacer) {
  half_key_pass<kHeads, 0>(page, depth, query, stride, scores, pacer);
  if constexpr (pass_width(kHeads) == 2) {
    half_key_pass<kHeads, 2>(page, depth, query, stride, scores, pacer);
  }
}

void half_keys(const DecodePlan& plan, const DecodeQuery& query, const std::byte* page,
               Prefetch prefetch, DecodeScratch& scratch) {
  const TensorFormat& format = plan.key_format;
  const std::byte* block = page + format.planes_offset;
  Pacer pacer(prefetch, total_passes(plan.heads, 1) * format.depth / 2);
  for (int done = 0; done < plan.heads;) {
    const int heads = head_block(plan.heads - done, 1);
    const float* rows = query.rows + done * query.stride;
    const auto run = heads == 8   ? half_key_block<8>
                     : heads == 4 ? half_key_block<4>
                     : heads == 2 ? half_key_block<2>
                                  : half_key_block<1>;
    run(block, format.depth, rows, query.stride, scratch.scores + done, pacer);
    done += heads;
  }
  for (int head = 0; head < plan.heads; ++head) {
    scratch.factor[head] = 1;
    scratch.offset[head] = 0;
  }
}

// output[head][channels of the pass] += sum over tokens of weight[head][slot of token] * value.
template <int kHeads, int kFirst>
KVQ_INLINE void half_value_pass(const std::byte* block, const std::uint8_t* token_slot,
                                const float (*weights)[64], float* output, int output_stride,
                                Pacer& pacer) {
  constexpr int kCount = pass_width(kHeads);
  __m512 sum[kHeads][kCount];
#pragma GCC unroll 8
  for (int head = 0; head < kHeads; ++head) {
#pragma GCC unroll 4
    for (int i = 0; i < kCount; ++i) {
      sum[head][i] = _mm512_load_ps(output + head * output_stride + 16 * (kFirst + i));
    }
  }
  for (int token = 0; token < kPageTokens; token += 2) {
    pacer.step();
#pragma GCC unroll 2
    for (int k = 0; k < 2; ++k) {
      const std::size_t slot = token_slot[token + k];
      __m512 x[kCount];
#pragma GCC unroll 4
      for (int i = 0; i < kCount; ++i) {
        x[i] = load_half(block + kLineBytes * (token + k) + kSixteen * (kFirst + i));
      }
#pragma GCC unroll 8
      for (int head = 0; head < kHeads; ++head) {
        const __m512 p = _mm512_set1_ps(weights[head][slot]);
#pragma GCC unroll 4
        for (int i = 0; i < kCount; ++i) sum[head][i] = _mm512_fmadd_ps(x[i], p, sum[head][i]);
      }
    }
  }
#pragma GCC unroll 8
  for (int head = 0; head < kHeads; ++head) {
#pragma GCC unroll 4
    for (int i = 0; i < kCount; ++i) {
      _mm512_store_ps(output + head * output_stride + 16 * (kFirst + i), sum[head][i]);
    }
  }
}

template <int kHeads>
__attribute__((noinline)) void half_value_block(const DecodePlan& plan, const std::byte* page,
                                                int first_head, Pacer& pacer,
                                                DecodeScratch& scratch) {
  const TensorFormat& format = plan.value_format;
  for (int block = 0; block < format.blocks; ++block) {
    const std::byte* values = page + format.planes_offset + block * format.block_bytes;
    float* const output = scratch.output + first_head * plan.output_stride + 64 * block;
    const float(*weights)[64] = scratch.scores + first_head;
    half_value_pass<kHeads, 0>(values, plan.token_slot, weights, output, plan.output_stride, pacer);
    if constexpr (pass_width(kHeads) == 2) {
      half_value_pass<kHeads, 2>(values, plan.token_slot, weights, output, plan.output_stride,
                                 pacer);
    }
  }
}

void half_values(const DecodePlan& plan, const std::byte* page, Prefetch prefetch,
                 DecodeScratch& scratch) {
  Pacer pacer(prefetch, total_passes(plan.heads, 1) * plan.value_format.blocks * kPageTokens / 2);
  for (int done = 0; done < plan.heads;) {
    const int heads = head_block(plan.heads - done, 1);
    const auto run = heads == 8   ? half_value_block<8>
                     : heads == 4 ? half_value_block<4>
                     : heads == 2 ? half_value_block<2>
                                  : half_value_block<1>;
    run(plan, page, done, pacer, scratch);
    done += heads;
  }
}

// result[i] = sum of the lanes of x[i].
KVQ_INLINE __m512 sums_of_sixteen(const __m512 (&x)[16]) {
  __m512 lanes[4];  // [128-bit lane][i] of four vectors each
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const __m512* v = x + 4 * i;
    const __m512 ab = _mm512_add_ps(_mm512_unpacklo_ps(v[0], v[1]), _mm512_unpackhi_ps(v[0], v[1]));
    const __m512 cd = _mm512_add_ps(_mm512_unpacklo_ps(v[2], v[3]), _mm512_unpackhi_ps(v[2], v[3]));
    const __m512d abd = _mm512_castps_pd(ab);
    const __m512d cdd = _mm512_castps_pd(cd);
    lanes[i] = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(abd, cdd)),
                             _mm512_castpd_ps(_mm512_unpackhi_pd(abd, cdd)));
  }
  const __m512 low = _mm512_add_ps(_mm512_shuffle_f32x4(lanes[0], lanes[1], 0x88),
                                   _mm512_shuffle_f32x4(lanes[0], lanes[1], 0xDD));
  const __m512 high = _mm512_add_ps(_mm512_shuffle_f32x4(lanes[2], lanes[3], 0x88),
                                    _mm512_shuffle_f32x4(lanes[2], lanes[3], 0xDD));
  return _mm512_add_ps(_mm512_shuffle_f32x4(low, high, 0x88),
                       _mm512_shuffle_f32x4(low, high, 0xDD));
}

// Scores of kHeads heads and 16 / kHeads tokens from `token` on; rows behind the last are read as
// the last.
template <int kHeads>
KVQ_INLINE void exact_key_tile(const float* query, int stride, const Half* rows, int token,
                               int count, int head_dim, float (*scores)[64]) {
  constexpr int kTokens = 16 / kHeads;
  const Half* row[kTokens];
#pragma GCC unroll 16
  for (int t = 0; t < kTokens; ++t) {
    row[t] =
        rows + static_cast<std::ptrdiff_t>(token + t < count ? token + t : count - 1) * head_dim;
  }
  __m512 sum[16];
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) sum[i] = _mm512_setzero_ps();
  for (int d = 0; d < head_dim; d += 16) {
    __m512 q[kHeads];
#pragma GCC unroll 4
    for (int head = 0; head < kHeads; ++head) q[head] = _mm512_load_ps(query + head * stride + d);
#pragma GCC unroll 16
    for (int t = 0; t < kTokens; ++t) {
      const __m512 k = load_half(row[t] + d);
#pragma GCC unroll 4
      for (int head = 0; head < kHeads; ++head) {
        sum[head * kTokens + t] = _mm512_fmadd_ps(k, q[head], sum[head * kTokens + t]);
      }
    }
  }
  alignas(64) float result[16];
  _mm512_store_ps(result, sums_of_sixteen(sum));
  for (int head = 0; head < kHeads; ++head) {
    std::memcpy(scores[head] + token, result + head * kTokens, kTokens * sizeof(float));
  }
}

template <int kHeads>
void exact_key_block(const float* query, int stride, const Half* rows, int count, int head_dim,
                     float (*scores)[64]) {
  for (int token = 0; token < count; token += 16 / kHeads) {
    exact_key_tile<kHeads>(query, stride, rows, token, count, head_dim, scores);
  }
}

// output[head][16 kCount channels] += sum over `count` rows.
template <int kHeads, int kCount>
KVQ_INLINE void exact_value_tile(const Half* rows, int count, int head_dim,
                                 const float (*weights)[64], float* output, int output_stride) {
  __m512 sum[kHeads][kCount];
#pragma GCC unroll 4
  for (int head = 0; head < kHeads; ++head) {
#pragma GCC unroll 4
    for (int i = 0; i < kCount; ++i) {
      sum[head][i] = _mm512_load_ps(output + head * output_stride + 16 * i);
    }
  }
  for (int token = 0; token < count; ++token) {
    __m512 v[kCount];
#pragma GCC unroll 4
    for (int i = 0; i < kCount; ++i) v[i] = load_half(rows + token * head_dim + 16 * i);
#pragma GCC unroll 4
    for (int head = 0; head < kHeads; ++head) {
      const __m512 p = _mm512_set1_ps(weights[head][token]);
#pragma GCC unroll 4
      for (int i = 0; i < kCount; ++i) sum[head][i] = _mm512_fmadd_ps(v[i], p, sum[head][i]);
    }
  }
#pragma GCC unroll 4
  for (int head = 0; head < kHeads; ++head) {
#pragma GCC unroll 4
    for (int i = 0; i < kCount; ++i) {
      _mm512_store_ps(output + head * output_stride + 16 * i, sum[head][i]);
    }
  }
}

template <int kHeads>
void exact_value_block(const Half* rows, int count, int head_dim, const float (*weights)[64],
                       float* output, int output_stride) {
  int channel = 0;
  for (; channel + 64 <= head_dim; channel += 64) {
    exact_value_tile<kHeads, 4>(rows + channel, count, head_dim, weights, output + channel,
                                output_stride);
  }
  for (; channel < head_dim; channel += 16) {
    exact_value_tile<kHeads, 1>(rows + channel, count, head_dim, weights, output + channel,
                                output_stride);
  }
}

int exact_head_block(int left) { return left >= 4 ? 4 : left >= 2 ? 2 : 1; }

}  // namespace

KeyKernel avx512_half_keys() {
  KeyKernel kernel;
  kernel.run = half_keys;
  return kernel;
}

ValueKernel avx512_half_values() {
  ValueKernel kernel;
  kernel.run = half_values;
  return kernel;
}

void avx512_exact_keys(const DecodeQuery& query, const Half* rows, int count, int heads,
                       int head_dim, DecodeScratch& scratch) {
  for (int done = 0; done < heads; done += exact_head_block(heads - done)) {
    const int block = exact_head_block(heads - done);
    const auto run = block == 4   ? exact_key_block<4>
                     : block == 2 ? exact_key_block<2>
                                  : exact_key_block<1>;
    run(query.plain + done * query.stride, query.stride, rows, count, head_dim,
        scratch.scores + done);
  }
  for (int head = 0; head < heads; ++head) {
    scratch.factor[head] = 1;
    scratch.offset[head] = 0;
    for (int token = count; token < 64; ++token) scratch.scores[head][token] = kNoScore;
  }
}

void avx512_exact_values(const Half* rows, int count, int heads, int head_dim, int output_stride,
                         DecodeScratch& scratch) {
  for (int done = 0; done < heads; done += exact_head_block(heads - done)) {
    const int block = exact_head_block(heads - done);
    const auto run = block == 4   ? exact_value_block<4>
                     : block == 2 ? exact_value_block<2>
                                  : exact_value_block<1>;
    run(rows, count, head_dim, scratch.scores + done, scratch.output + done * output_stride,
        output_stride);
  }
}

}  // namespace kvq
