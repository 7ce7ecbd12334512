// Scores of one page's 64 keys with AVX2: codes (uint8) x quantized queries (int8), one query head
// at a time. The arithmetic is that of decode_avx512_key.cc; DecodeQuery::codes is [head][term]
// here. Cost for head_dim 128, 4 query heads, two terms: about 1200 cycles a page at 4 bits.
#include "kvq/attention/cpu/decode_avx2_codes.h"
#include "kvq/attention/cpu/decode_avx2_kernels.h"

namespace kvq {
namespace {

// One page for one query head.
struct KeyJob {
  const std::byte* planes;
  int quads;
  int segments;
  int segment_quads;
  const float (*scales)[64];  // [segments], slot order
  const std::int8_t* codes;   // [terms][kQueryCodeStride]
  const std::int32_t* bias;   // [segments]
  float* scores;              // [64]
};

template <Bits kBits, int kTerms>
__attribute__((noinline)) void key_head(const KeyJob& job, Pacer& pacer) {
  using Source = Codes<kBits>;
  for (int segment = 0; segment < job.segments; ++segment) {
    const int first = segment * job.segment_quads;
    const int quads = job.quads - first < job.segment_quads ? job.quads - first : job.segment_quads;
    const PlaneCursor planes = planes_at<Source>(job.planes, job.quads, first);
    for (int chunk = 0; chunk < Source::kChunks; ++chunk) {
      __m256i accumulator[kTerms][2];
#pragma GCC unroll 2
      for (int i = 0; i < 2; ++i) {
        // Split codes take it once, in the low nibble.
        const std::int32_t bias =
            Source::kSplit && i == 1 ? 0 : job.bias[segment] * (1 << Source::kShift[i]);
        if (kTerms == 2) accumulator[0][i] = _mm256_setzero_si256();
        accumulator[kTerms - 1][i] = _mm256_set1_epi32(bias);
      }
      dot<Source, true>(planes, chunk, reinterpret_cast<const std::byte*>(job.codes) + 4 * first,
                        kQueryCodeStride, quads, pacer, accumulator);
      __m256 result[2];
      join<Source, kTerms>(accumulator, 0, result);
#pragma GCC unroll 2
      for (int i = 0; i < kResults<Source>; ++i) {
        const int slot = Source::slot(chunk, i);
        const __m256 before =
            segment == 0 ? _mm256_setzero_ps() : _mm256_load_ps(job.scores + slot);
        _mm256_store_ps(
            job.scores + slot,
            _mm256_fmadd_ps(result[i], _mm256_load_ps(job.scales[segment] + slot), before));
      }
    }
  }
}

struct Quantized {
  float factor;
  std::int32_t sum;  // of the quantized numbers
};

KVQ_INLINE void store_bytes(__m256i x, std::int8_t* out) {
  const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
  _mm_storel_epi64(reinterpret_cast<__m128i*>(out), _mm_packs_epi16(words, words));
}

// row[i] * scale[i] (scale may be null: 1) = factor * (256 high[i] + low[i]), or factor * high[i]
// with one term. `depth` is a multiple of 8.
Quantized quantize_row(const float* row, const float* scale, int depth, int terms,
                       std::int8_t* high, std::int8_t* low) {
  const auto element = [&](int i) {
    const __m256 x = _mm256_load_ps(row + i);
    return scale == nullptr ? x : _mm256_mul_ps(x, _mm256_load_ps(scale + i));
  };
  const __m256 sign = _mm256_set1_ps(-0.0F);
  __m256 largest = _mm256_setzero_ps();
  for (int i = 0; i < depth; i += 8) {
    largest = _mm256_max_ps(largest, _mm256_andnot_ps(sign, element(i)));
  }
  const float limit = terms == 2 ? 127 * 256 : 127;
  const float maximum = largest_lane(largest);
  // Below 1e-30 everything counts as zero: its reciprocal would overflow.
  const __m256 inverse = _mm256_set1_ps(maximum > 1e-30F ? limit / maximum : 0.0F);
  __m256i sum = _mm256_setzero_si256();
  for (int i = 0; i < depth; i += 8) {
    const __m256i x = _mm256_cvtps_epi32(_mm256_mul_ps(element(i), inverse));
    sum = _mm256_add_epi32(sum, x);
    __m256i top = x;
    if (terms == 2) {
      top = _mm256_srai_epi32(_mm256_add_epi32(x, _mm256_set1_epi32(128)), 8);
      store_bytes(_mm256_sub_epi32(x, _mm256_slli_epi32(top, 8)), low + i);
    }
    store_bytes(top, high + i);
  }
  alignas(32) std::int32_t lanes[8];
  _mm256_store_si256(reinterpret_cast<__m256i*>(lanes), sum);
  std::int32_t total = 0;
  for (const std::int32_t lane : lanes) total += lane;
  return {maximum / limit, total};
}

// Adds center[token] * (sum of q over the depth group), in units of the factor.
void add_row_centers(const DecodePlan& plan, const DecodeQuery& query, DecodeScratch& scratch) {
  for (int head = 0; head < plan.heads; ++head) {
    for (int i = 0; i < 64; i += 8) {
      __m256 score = _mm256_load_ps(scratch.scores[head] + i);
      for (int segment = 0; segment < plan.key_segments; ++segment) {
        const __m256 sum = _mm256_set1_ps(query.sums[head * plan.key_segments + segment]);
        score = _mm256_fmadd_ps(_mm256_load_ps(scratch.centers[segment] + i), sum, score);
      }
      _mm256_store_ps(scratch.scores[head] + i, score);
    }
  }
}

int key_steps(const DecodePlan& plan, int chunks) {
  return plan.heads * chunks * plan.key_format.depth / 16;
}

template <Bits kBits, int kTerms>
void row_wise_keys(const DecodePlan& plan, const DecodeQuery& query, const std::byte* page,
                   Prefetch prefetch, DecodeScratch& scratch) {
  const TensorFormat& format = plan.key_format;
  pick_all(page + format.scales_offset, plan.key_picks, plan.key_segments, plan.key_unit,
           scratch.scales);
  Pacer pacer(prefetch, key_steps(plan, Codes<kBits>::kChunks));
  for (int head = 0; head < plan.heads; ++head) {
    key_head<kBits, kTerms>(
        {page + format.planes_offset, format.depth / 4, plan.key_segments,
         plan.key_segment_depth / 4, scratch.scales, query.codes + head * kTerms * kQueryCodeStride,
         query.bias + head * plan.key_segments, scratch.scores[head]},
        pacer);
    scratch.factor[head] = query.factor[head];
    scratch.offset[head] = 0;
  }
  if (format.has_centers()) {
    pick_all(page + format.centers_offset, plan.key_picks, plan.key_segments, nullptr,
             scratch.centers);
    add_row_centers(plan, query, scratch);
  }
}

template <Bits kBits, int kTerms>
void depth_wise_keys(const DecodePlan& plan, const DecodeQuery& query, const std::byte* page,
                     Prefetch prefetch, DecodeScratch& scratch) {
  const TensorFormat& format = plan.key_format;
  const int chunks = (format.depth + 63) / 64;
  pick_all(page + format.scales_offset, plan.key_picks, chunks, nullptr, scratch.scales);
  if (format.has_centers()) {
    pick_all(page + format.centers_offset, plan.key_picks, chunks, nullptr, scratch.centers);
  }
  Pacer pacer(prefetch, key_steps(plan, Codes<kBits>::kChunks));
  for (int head = 0; head < plan.heads; ++head) {
    const float* row = query.rows + head * query.stride;
    std::int8_t(*codes)[kQueryCodeStride] = scratch.query_codes + head * kTerms;
    const Quantized q =
        quantize_row(row, scratch.scales[0], format.depth, kTerms, codes[0], codes[kTerms - 1]);
    float offset = -q.factor * middle(kBits) * static_cast<float>(q.sum);
    if (format.has_centers()) {
      __m256 sum = _mm256_setzero_ps();
      for (int i = 0; i < format.depth; i += 8) {
        sum = _mm256_fmadd_ps(_mm256_load_ps(row + i), _mm256_load_ps(scratch.centers[0] + i), sum);
      }
      offset += sum_of_lanes(sum);
    }
    scratch.factor[head] = q.factor;
    scratch.offset[head] = offset;
    // One segment: the row scales are the accumulators' units.
    key_head<kBits, kTerms>({page + format.planes_offset, format.depth / 4, 1, format.depth / 4,
                             reinterpret_cast<const float(*)[64]>(plan.key_unit), codes[0],
                             scratch.zero_bias, scratch.scores[head]},
                            pacer);
  }
}

template <Bits kBits>
KeyKernel key_kernel(const TensorFormat& format, int terms) {
  KeyKernel kernel;
  describe<Codes<kBits>>(kernel);
  if (format.depth_wise) {
    kernel.run = terms == 2 ? depth_wise_keys<kBits, 2> : depth_wise_keys<kBits, 1>;
  } else {
    kernel.run = terms == 2 ? row_wise_keys<kBits, 2> : row_wise_keys<kBits, 1>;
  }
  return kernel;
}

}  // namespace

KeyKernel avx2_key_kernel(const TensorFormat& format, int terms) {
  switch (format.spec.bits) {
    case Bits::k1:
      return key_kernel<Bits::k1>(format, terms);
    case Bits::k2:
      return key_kernel<Bits::k2>(format, terms);
    case Bits::k3:
      return key_kernel<Bits::k3>(format, terms);
    case Bits::k4:
      return key_kernel<Bits::k4>(format, terms);
    case Bits::k8:
      return key_kernel<Bits::k8>(format, terms);
    case Bits::k16:
      return avx2_half_keys();
    case Bits::kTernary:
    case Bits::k5:
    case Bits::k6:
      break;  // served by tiles
  }
  return {};
}

void avx2_quantize_query(const DecodePlan& plan, DecodeQuery& query) {
  const int depth = plan.key_format.depth;
  const std::int64_t top_code = levels(plan.key_format.spec.bits) - 1;
  for (int head = 0; head < plan.heads; ++head) {
    std::int8_t* const high = query.codes + head * plan.key_terms * kQueryCodeStride;
    std::int8_t* const low = high + (plan.key_terms - 1) * kQueryCodeStride;
    const float* const row = query.rows + head * query.stride;
    query.factor[head] = quantize_row(row, nullptr, depth, plan.key_terms, high, low).factor;
    for (int segment = 0; segment < plan.key_segments; ++segment) {
      const int first = segment * plan.key_segment_depth;
      const int end =
          first + plan.key_segment_depth < depth ? first + plan.key_segment_depth : depth;
      std::int32_t sum = 0;
      for (int i = first; i < end; ++i)
        sum += plan.key_terms == 2 ? 256 * high[i] + low[i] : high[i];
      // Half a unit of the quantized q at most is lost where the middle is not whole.
      query.bias[head * plan.key_segments + segment] =
          static_cast<std::int32_t>(-top_code * sum / 2);
      query.sums[head * plan.key_segments + segment] = static_cast<float>(sum);
    }
  }
}

}  // namespace kvq
