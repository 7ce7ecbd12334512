// Scores of one page's 64 keys with AVX-512 VNNI: codes (uint8) x quantized queries (int8).
//
//   row-wise parameters    q is quantized once per call; score = factor * sum over depth groups of
//   (a scale per token)    scale[token] * (sum q8 code - middle sum q8) [+ center[token] sum q]
//   depth-wise parameters  q~ = q scale[channel] is quantized per page; scale and middle come after
//   (a scale per channel)  the dot, in factor and offset, for all tokens alike
//
// With two terms q is 256 high + low, exact to 1/32512 of its largest element.
// Cost for head_dim 128, 4 query heads, two terms: 1024 VPDPBUSD = 512 cycles a page, all else of
// row-wise keys about 80, depth-wise quantization about 150.
#include "kvq/attention/cpu/decode_avx512_dot.h"
#include "kvq/attention/cpu/decode_avx512_kernels.h"

namespace kvq {
namespace {

// One page for the heads of one block.
struct KeyJob {
  const std::byte* planes;
  int quads;     // depth / 4
  int segments;  // depth groups, each with its own row scales
  int segment_quads;
  const float (*scales)[64];  // [segments], slot order
  const std::int8_t* codes;   // [virtual heads][kQueryCodeStride]
  const std::int32_t* bias;   // [heads][segments]
  float (*scores)[64];        // [heads]
};

// Two terms of 4 heads take turns in one set of 16 accumulators: sum of the high terms, times 256,
// plus the low terms. Fewer heads need both sets at once to hide the latency of VPDPBUSD.
constexpr bool chains_terms(int heads, int terms) { return terms == 2 && heads == 4; }
// Sets of accumulators of one head.
constexpr int accumulator_sets(int heads, int terms) {
  return chains_terms(heads, terms) ? 1 : terms;
}

// Adds the dot products of one depth group to accumulators that hold nothing, and its bias.
//   codes  [virtual heads][kQueryCodeStride] at the group's first depth
//   bias   [heads], `segments` apart
template <typename Source, int kHeads, int kTerms, int kFirst, int kVirtual, int kCount>
KVQ_INLINE void key_dot(const PlaneCursor& planes, const std::byte* codes, int quads,
                        const std::int32_t* bias, int segments, Pacer& pacer,
                        __m512i (&accumulator)[kVirtual][kCount]) {
  constexpr bool kChained = chains_terms(kHeads, kTerms);
  constexpr int kBiased = kVirtual - kHeads;  // the first virtual head that takes a bias
#pragma GCC unroll 8
  for (int v = 0; v < kVirtual; ++v) {
#pragma GCC unroll 4
    for (int i = 0; i < kCount; ++i) accumulator[v][i] = _mm512_setzero_si512();
  }
  if constexpr (kChained) {
    dot<Source, true, kFirst>(planes, codes, kQueryCodeStride, quads, pacer, accumulator);
    codes += kHeads * kQueryCodeStride;
  }
#pragma GCC unroll 8
  for (int head = 0; head < kHeads; ++head) {
    const __m512i x = _mm512_set1_epi32(bias[head * segments]);
#pragma GCC unroll 4
    for (int i = 0; i < kCount; ++i) {
      __m512i& sum = accumulator[kBiased + head][i];
      sum = _mm512_add_epi32(_mm512_slli_epi32(sum, 8),
                             _mm512_slli_epi32(x, Source::kShift[kFirst + i]));
    }
  }
  dot<Source, true, kFirst>(planes, codes, kQueryCodeStride, quads, pacer, accumulator);
}

template <Bits kBits, int kHeads, int kTerms, int kFirst>
KVQ_INLINE void key_pass(const KeyJob& job, Pacer& pacer) {
  using Source = Codes<kBits, true>;
  constexpr int kSets = accumulator_sets(kHeads, kTerms);
  constexpr int kVirtual = kHeads * kSets;
  constexpr int kCount = pass_width(kVirtual);
  float(*const scores)[64] = job.scores;
  for (int segment = 0; segment < job.segments; ++segment) {
    const int first = segment * job.segment_quads;
    const int quads = job.quads - first < job.segment_quads ? job.quads - first : job.segment_quads;
    __m512i accumulator[kVirtual][kCount];
    key_dot<Source, kHeads, kTerms, kFirst>(
        planes_at<Source>(job.planes, job.quads, first),
        reinterpret_cast<const std::byte*>(job.codes) + 4 * first, quads, job.bias + segment,
        job.segments, pacer, accumulator);
    const float* const scales = job.scales[segment] + 16 * kFirst;
#pragma GCC unroll 4
    for (int i = 0; i < kCount; ++i) {
      const __m512 scale = _mm512_load_ps(scales + 16 * i);
#pragma GCC unroll 8
      for (int head = 0; head < kHeads; ++head) {
        float* const at = scores[head] + 16 * (kFirst + i);
        const __m512 before = segment == 0 ? _mm512_setzero_ps() : _mm512_load_ps(at);
        const __m512 sum = total<kSets, kHeads>(accumulator, head, i);
        _mm512_store_ps(at, _mm512_fmadd_ps(sum, scale, before));
      }
    }
  }
}

template <Bits kBits, int kHeads, int kTerms>
__attribute__((noinline)) void key_block(const KeyJob& job, Pacer& pacer) {
  constexpr int kVirtual = kHeads * accumulator_sets(kHeads, kTerms);
  key_pass<kBits, kHeads, kTerms, 0>(job, pacer);
  if constexpr (pass_width(kVirtual) == 2) key_pass<kBits, kHeads, kTerms, 2>(job, pacer);
}

// All query heads, block by block. `codes` and `bias` are laid out as DecodeQuery's. Moves the job
// from block to block in place: a copy would be loaded wider than it was stored, which waits for
// the stores of the page before.
template <Bits kBits, int kTerms>
KVQ_INLINE void key_heads(KeyJob& job, int heads, Pacer& pacer) {
  for (int done = 0; done < heads;) {
    const int block = head_block(heads - done, kTerms);
    if (block == 8) {
      if constexpr (kTerms == 1) key_block<kBits, 8, kTerms>(job, pacer);
    } else if (block == 4) {
      key_block<kBits, 4, kTerms>(job, pacer);
    } else if (block == 2) {
      key_block<kBits, 2, kTerms>(job, pacer);
    } else {
      key_block<kBits, 1, kTerms>(job, pacer);
    }
    job.codes += block * kTerms * kQueryCodeStride;
    job.bias += block * job.segments;
    job.scores += block;
    done += block;
  }
}

struct Quantized {
  float factor;
  std::int32_t sum;  // of the quantized numbers
};

// row[i] * scale[i] (scale may be null: 1) = factor * (256 high[i] + low[i]), or factor * high[i]
// with one term. `depth` is a multiple of 16.
Quantized quantize_row(const float* row, const float* scale, int depth, int terms,
                       std::int8_t* high, std::int8_t* low) {
  const auto element = [&](int i) {
    const __m512 x = _mm512_load_ps(row + i);
    return scale == nullptr ? x : _mm512_mul_ps(x, _mm512_load_ps(scale + i));
  };
  __m512 largest = _mm512_setzero_ps();
  for (int i = 0; i < depth; i += 16) largest = _mm512_max_ps(largest, _mm512_abs_ps(element(i)));
  const float limit = terms == 2 ? 127 * 256 : 127;
  const float maximum = _mm512_reduce_max_ps(largest);
  // Below 1e-30 everything counts as zero: its reciprocal would overflow.
  const __m512 inverse = _mm512_set1_ps(maximum > 1e-30F ? limit / maximum : 0.0F);
  __m512i sum = _mm512_setzero_si512();
  for (int i = 0; i < depth; i += 16) {
    const __m512i x = _mm512_cvtps_epi32(_mm512_mul_ps(element(i), inverse));
    sum = _mm512_add_epi32(sum, x);
    __m512i top = x;
    if (terms == 2) {
      top = _mm512_srai_epi32(_mm512_add_epi32(x, _mm512_set1_epi32(128)), 8);
      const __m512i rest = _mm512_sub_epi32(x, _mm512_slli_epi32(top, 8));
      _mm_store_si128(reinterpret_cast<__m128i*>(low + i), _mm512_cvtepi32_epi8(rest));
    }
    _mm_store_si128(reinterpret_cast<__m128i*>(high + i), _mm512_cvtepi32_epi8(top));
  }
  return {maximum / limit, _mm512_reduce_add_epi32(sum)};
}

// Where head `head` keeps term 0 in DecodeQuery::codes, and how far behind term 1 lies.
struct CodePlace {
  int row;
  int terms_apart;
};
CodePlace code_place(int head, int heads, int terms) {
  int first = 0;
  int block = head_block(heads, terms);
  while (head >= first + block) {
    first += block;
    block = head_block(heads - first, terms);
  }
  return {first * terms + head - first, block};
}

// Adds center[token] * (sum of q over the depth group), in units of the factor.
void add_row_centers(const DecodePlan& plan, const DecodeQuery& query, DecodeScratch& scratch) {
  for (int head = 0; head < plan.heads; ++head) {
    for (int i = 0; i < 64; i += 16) {
      __m512 score = _mm512_load_ps(scratch.scores[head] + i);
      for (int segment = 0; segment < plan.key_segments; ++segment) {
        const __m512 sum = _mm512_set1_ps(query.sums[head * plan.key_segments + segment]);
        score = _mm512_fmadd_ps(_mm512_load_ps(scratch.centers[segment] + i), sum, score);
      }
      _mm512_store_ps(scratch.scores[head] + i, score);
    }
  }
}

// The planes as the kernel reads them: ternary codes are unpacked to bytes first.
template <Bits kBits>
const std::byte* readable_planes(const std::byte* planes, int quads, DecodeScratch& scratch) {
  if constexpr (kBits == Bits::kTernary) {
    unpack_ternary(planes, quads, scratch.plain_codes);
    return scratch.plain_codes;
  }
  return planes;
}

template <Bits kBits, int kTerms>
void row_wise_keys(const DecodePlan& plan, const DecodeQuery& query, const std::byte* page,
                   Prefetch prefetch, DecodeScratch& scratch) {
  const TensorFormat& format = plan.key_format;
  const int quads = format.depth / 4;
  pick_all(page + format.scales_offset, plan.key_picks, plan.key_segments, plan.key_unit,
           scratch.scales);
  // Whole registers: both arrays are padded to 64 bytes.
  _mm512_store_ps(scratch.factor, _mm512_load_ps(query.factor));
  _mm512_store_ps(scratch.offset, _mm512_setzero_ps());
  Pacer pacer(prefetch, total_passes(plan.heads, kTerms) * quads / 4);
  KeyJob job{readable_planes<kBits>(page + format.planes_offset, quads, scratch),
             quads,
             plan.key_segments,
             plan.key_segment_depth / 4,
             scratch.scales,
             query.codes,
             query.bias,
             scratch.scores};
  key_heads<kBits, kTerms>(job, plan.heads, pacer);
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
  const int quads = format.depth / 4;
  const int chunks = (format.depth + 63) / 64;
  float* const scales = scratch.scales[0];
  pick_all(page + format.scales_offset, plan.key_picks, chunks, nullptr, scratch.scales);
  if (format.has_centers()) {
    pick_all(page + format.centers_offset, plan.key_picks, chunks, nullptr, scratch.centers);
  }
  for (int head = 0; head < plan.heads; ++head) {
    const CodePlace place = code_place(head, plan.heads, kTerms);
    const float* row = query.rows + head * query.stride;
    const Quantized q =
        quantize_row(row, scales, format.depth, kTerms, scratch.query_codes[place.row],
                     scratch.query_codes[place.row + place.terms_apart]);
    scratch.factor[head] = q.factor;
    float offset = -q.factor * middle(format.spec.bits) * static_cast<float>(q.sum);
    if (format.has_centers()) {
      __m512 sum = _mm512_setzero_ps();
      for (int i = 0; i < format.depth; i += 16) {
        sum = _mm512_fmadd_ps(_mm512_load_ps(row + i), _mm512_load_ps(scratch.centers[0] + i), sum);
      }
      offset += _mm512_reduce_add_ps(sum);
    }
    scratch.offset[head] = offset;
  }
  // One segment: the row scales are the accumulators' units.
  Pacer pacer(prefetch, total_passes(plan.heads, kTerms) * quads / 4);
  KeyJob job{readable_planes<kBits>(page + format.planes_offset, quads, scratch),
             quads,
             1,
             quads,
             reinterpret_cast<const float(*)[64]>(plan.key_unit),
             scratch.query_codes[0],
             scratch.zero_bias,
             scratch.scores};
  key_heads<kBits, kTerms>(job, plan.heads, pacer);
}

template <Bits kBits>
KeyKernel key_kernel(const TensorFormat& format, int terms) {
  using Source = Codes<kBits, true>;
  KeyKernel kernel;
  kernel.order = Source::kOrder;
  for (int u = 0; u < 4; ++u) kernel.shift[u] = Source::kShift[u];
  if (format.depth_wise) {
    kernel.run = terms == 2 ? depth_wise_keys<kBits, 2> : depth_wise_keys<kBits, 1>;
  } else {
    kernel.run = terms == 2 ? row_wise_keys<kBits, 2> : row_wise_keys<kBits, 1>;
  }
  return kernel;
}

}  // namespace

KeyKernel avx512_key_kernel(const TensorFormat& format, int terms) {
  switch (format.spec.bits) {
    case Bits::k1:
      return key_kernel<Bits::k1>(format, terms);
    case Bits::kTernary:
      return key_kernel<Bits::kTernary>(format, terms);
    case Bits::k2:
      return key_kernel<Bits::k2>(format, terms);
    case Bits::k3:
      return key_kernel<Bits::k3>(format, terms);
    case Bits::k4:
      return key_kernel<Bits::k4>(format, terms);
    case Bits::k5:
      return key_kernel<Bits::k5>(format, terms);
    case Bits::k6:
      return key_kernel<Bits::k6>(format, terms);
    case Bits::k8:
      return key_kernel<Bits::k8>(format, terms);
    case Bits::k16:
      return avx512_half_keys();
  }
  return {};
}

void avx512_quantize_query(const DecodePlan& plan, DecodeQuery& query) {
  const int depth = plan.key_format.depth;
  const std::int64_t top_code = levels(plan.key_format.spec.bits) - 1;
  for (int head = 0; head < plan.heads; ++head) {
    const CodePlace place = code_place(head, plan.heads, plan.key_terms);
    std::int8_t* const high = query.codes + place.row * kQueryCodeStride;
    std::int8_t* const low = high + place.terms_apart * kQueryCodeStride;
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
