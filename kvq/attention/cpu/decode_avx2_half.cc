// Unquantized keys and values with AVX2: fp16 pages (16-bit formats) and exact rows. The method is
// that of decode_avx512_half.cc with 8 lanes: 16 rows of 4 heads a pass.
#include "kvq/attention/cpu/decode_avx2_dot.h"
#include "kvq/attention/cpu/decode_avx2_kernels.h"

namespace kvq {
namespace {

KVQ_INLINE __m256 load_half(const void* at) {
  return _mm256_cvtph_ps(_mm_loadu_si128(static_cast<const __m128i*>(at)));
}

constexpr int kLineBytes = kBlockRows * static_cast<int>(sizeof(Half));  // one depth of a block
constexpr int kPassBytes = 16 * static_cast<int>(sizeof(Half));          // its 16 rows of a pass

template <int kHeads>
using Sums = __m256[kHeads][2];

template <int kHeads>
KVQ_INLINE void load_sums(const float* from, int stride, Sums<kHeads>& sum) {
#pragma GCC unroll 4
  for (int head = 0; head < kHeads; ++head) {
    sum[head][0] = _mm256_load_ps(from + head * stride);
    sum[head][1] = _mm256_load_ps(from + head * stride + 8);
  }
}

template <int kHeads>
KVQ_INLINE void store_sums(const Sums<kHeads>& sum, float* to, int stride) {
#pragma GCC unroll 4
  for (int head = 0; head < kHeads; ++head) {
    _mm256_store_ps(to + head * stride, sum[head][0]);
    _mm256_store_ps(to + head * stride + 8, sum[head][1]);
  }
}

// sum[head] += factors[head] * 16 fp16 numbers.
template <int kHeads>
KVQ_INLINE void accumulate(const void* numbers, const float* factors, int stride,
                           Sums<kHeads>& sum) {
  const __m256 x0 = load_half(numbers);
  const __m256 x1 = load_half(static_cast<const std::byte*>(numbers) + kPassBytes / 2);
#pragma GCC unroll 4
  for (int head = 0; head < kHeads; ++head) {
    const __m256 factor = _mm256_set1_ps(factors[head * stride]);
    sum[head][0] = _mm256_fmadd_ps(x0, factor, sum[head][0]);
    sum[head][1] = _mm256_fmadd_ps(x1, factor, sum[head][1]);
  }
}

template <int kHeads>
__attribute__((noinline)) void half_key_block(const std::byte* block, int depth, const float* query,
                                              int stride, float (*scores)[64], Pacer& pacer) {
  for (int pass = 0; pass < 4; ++pass) {
    Sums<kHeads> sum;
    for (auto& head : sum) head[0] = head[1] = _mm256_setzero_ps();
    for (int d = 0; d < depth; d += 4) {
      pacer.step();
#pragma GCC unroll 4
      for (int k = d; k < d + 4; ++k) {
        accumulate<kHeads>(block + kLineBytes * k + kPassBytes * pass, query + k, stride, sum);
      }
    }
    store_sums<kHeads>(sum, scores[0] + 16 * pass, 64);
  }
}

void half_keys(const DecodePlan& plan, const DecodeQuery& query, const std::byte* page,
               Prefetch prefetch, DecodeScratch& scratch) {
  const TensorFormat& format = plan.key_format;
  Pacer pacer(prefetch, head_blocks(plan.heads) * format.depth);
  for (int done = 0; done < plan.heads; done += head_block(plan.heads - done)) {
    const int heads = head_block(plan.heads - done);
    const auto run = heads == 4   ? half_key_block<4>
                     : heads == 2 ? half_key_block<2>
                                  : half_key_block<1>;
    run(page + format.planes_offset, format.depth, query.rows + done * query.stride, query.stride,
        scratch.scores + done, pacer);
  }
  for (int head = 0; head < plan.heads; ++head) {
    scratch.factor[head] = 1;
    scratch.offset[head] = 0;
  }
}

template <int kHeads>
__attribute__((noinline)) void half_value_block(const std::byte* block,
                                                const std::uint8_t* token_slot,
                                                const float* weights, float* output,
                                                int output_stride, Pacer& pacer) {
  for (int pass = 0; pass < 4; ++pass) {
    Sums<kHeads> sum;
    load_sums<kHeads>(output + 16 * pass, output_stride, sum);
    for (int token = 0; token < kPageTokens; token += 4) {
      pacer.step();
#pragma GCC unroll 4
      for (int k = token; k < token + 4; ++k) {
        accumulate<kHeads>(block + kLineBytes * k + kPassBytes * pass, weights + token_slot[k], 64,
                           sum);
      }
    }
    store_sums<kHeads>(sum, output + 16 * pass, output_stride);
  }
}

void half_values(const DecodePlan& plan, const std::byte* page, Prefetch prefetch,
                 DecodeScratch& scratch) {
  const TensorFormat& format = plan.value_format;
  Pacer pacer(prefetch, head_blocks(plan.heads) * format.blocks * kPageTokens);
  for (int done = 0; done < plan.heads; done += head_block(plan.heads - done)) {
    const int heads = head_block(plan.heads - done);
    const auto run = heads == 4   ? half_value_block<4>
                     : heads == 2 ? half_value_block<2>
                                  : half_value_block<1>;
    for (int block = 0; block < format.blocks; ++block) {
      run(page + format.planes_offset + block * format.block_bytes, plan.token_slot,
          scratch.scores[done], scratch.output + done * plan.output_stride + 64 * block,
          plan.output_stride, pacer);
    }
  }
}

// Scores of kHeads heads and 8 / kHeads tokens from `token` on; rows behind the last are read as
// the last.
template <int kHeads>
KVQ_INLINE void exact_key_tile(const float* query, int stride, const Half* rows, int token,
                               int count, int head_dim, float (*scores)[64]) {
  constexpr int kTokens = 8 / kHeads;
  const Half* row[kTokens];
  for (int t = 0; t < kTokens; ++t) {
    row[t] =
        rows + static_cast<std::ptrdiff_t>(token + t < count ? token + t : count - 1) * head_dim;
  }
  __m256 sum[kHeads][kTokens];
  for (auto& head : sum) {
    for (__m256& x : head) x = _mm256_setzero_ps();
  }
  for (int d = 0; d < head_dim; d += 8) {
    __m256 k[kTokens];
#pragma GCC unroll 8
    for (int t = 0; t < kTokens; ++t) k[t] = load_half(row[t] + d);
#pragma GCC unroll 4
    for (int head = 0; head < kHeads; ++head) {
      const __m256 q = _mm256_load_ps(query + head * stride + d);
#pragma GCC unroll 8
      for (int t = 0; t < kTokens; ++t) sum[head][t] = _mm256_fmadd_ps(k[t], q, sum[head][t]);
    }
  }
#pragma GCC unroll 4
  for (int head = 0; head < kHeads; ++head) {
#pragma GCC unroll 8
    for (int t = 0; t < kTokens; ++t) scores[head][token + t] = sum_of_lanes(sum[head][t]);
  }
}

template <int kHeads>
void exact_key_block(const float* query, int stride, const Half* rows, int count, int head_dim,
                     float (*scores)[64]) {
  for (int token = 0; token < count; token += 8 / kHeads) {
    exact_key_tile<kHeads>(query, stride, rows, token, count, head_dim, scores);
  }
}

template <int kHeads>
void exact_value_block(const Half* rows, int count, int head_dim, const float* weights,
                       float* output, int output_stride) {
  for (int channel = 0; channel < head_dim; channel += 16) {
    Sums<kHeads> sum;
    load_sums<kHeads>(output + channel, output_stride, sum);
    for (int token = 0; token < count; ++token) {
      accumulate<kHeads>(rows + static_cast<std::ptrdiff_t>(token) * head_dim + channel,
                         weights + token, 64, sum);
    }
    store_sums<kHeads>(sum, output + channel, output_stride);
  }
}

}  // namespace

KeyKernel avx2_half_keys() {
  KeyKernel kernel;
  kernel.run = half_keys;
  return kernel;
}

ValueKernel avx2_half_values() {
  ValueKernel kernel;
  kernel.run = half_values;
  return kernel;
}

void avx2_exact_keys(const DecodeQuery& query, const Half* rows, int count, int heads, int head_dim,
                     DecodeScratch& scratch) {
  for (int done = 0; done < heads; done += head_block(heads - done)) {
    const int block = head_block(heads - done);
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

void avx2_exact_values(const Half* rows, int count, int heads, int head_dim, int output_stride,
                       DecodeScratch& scratch) {
  for (int done = 0; done < heads; done += head_block(heads - done)) {
    const int block = head_block(heads - done);
    const auto run = block == 4   ? exact_value_block<4>
                     : block == 2 ? exact_value_block<2>
                                  : exact_value_block<1>;
    run(rows, count, head_dim, scratch.scores[done], scratch.output + done * output_stride,
        output_stride);
  }
}

}  // namespace kvq
