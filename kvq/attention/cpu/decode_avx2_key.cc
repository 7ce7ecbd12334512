// Scores of one page's 64 keys with AVX2: codes x quantized queries.
//
//   row-wise parameters    q is quantized once per call; score = factor * sum over depth groups of
//   (a scale per token)    scale[token] * (sum q code - middle sum q) [+ center[token] sum q]
//   depth-wise parameters  q~ = q scale[channel] is quantized per page; scale and middle come after
//   (a scale per channel)  the dot, in factor and offset, for all tokens alike
//
// q is int16, exact to 1/32767 of its largest element (where two terms are asked for or codes are
// wider than 4 bits), or int8. A head's quantized row has kRowBytes whichever it is.
// Cost for head_dim 128, 4 query heads, 4-bit codes as words: 2048 VPMADDWD = 1024 cycles a page at
// least; measured 1500 for the products, 300 for the rest.
#include "kvq/attention/cpu/decode_avx2_dot.h"
#include "kvq/attention/cpu/decode_avx2_kernels.h"

namespace kvq {
namespace {

constexpr int kRowBytes = 2 * kQueryCodeStride;

constexpr Operand key_operand(Bits bits, int terms) {
  return terms == 1 && narrow(bits) ? Operand::kKeyBytes : Operand::kWords;
}

// One page for the heads of one block.
struct KeyJob {
  const std::byte* planes;
  int quads;     // depth / 4
  int segments;  // depth groups, each with its own row scales
  int segment_quads;
  const float (*scales)[64];  // [segments], slot order
  const std::byte* codes;     // [heads][kRowBytes], quantized queries
  const std::int32_t* bias;   // [heads][segments]
  float (*scores)[64];        // [heads]
};

template <Bits kBits, Operand kOperand, int kHeads>
__attribute__((noinline)) void key_block(const KeyJob& job, Pacer& pacer) {
  using Source = Codes<kBits>;
  for (int segment = 0; segment < job.segments; ++segment) {
    const int first = segment * job.segment_quads;
    const int quads = job.quads - first < job.segment_quads ? job.quads - first : job.segment_quads;
    const PlaneCursor planes = planes_at<Source>(job.planes, job.quads, first);
    const std::byte* const codes = job.codes + 4 * operand_bytes(kOperand) * first;
    for (int chunk = 0; chunk < 4; ++chunk) {
      __m256i accumulator[kHeads][2];
#pragma GCC unroll 4
      for (int head = 0; head < kHeads; ++head) {
        const std::int32_t bias = job.bias[head * job.segments + segment];
        accumulator[head][0] = _mm256_set1_epi32(bias * (1 << Source::kShift[0]));
        accumulator[head][1] = _mm256_set1_epi32(bias * (1 << Source::kShift[1]));
      }
      dot<Source, kOperand>(planes, chunk, codes, kRowBytes, quads, pacer, accumulator);
#pragma GCC unroll 2
      for (int i = 0; i < 2; ++i) {
        const int slot = Source::slot(chunk, i);
        const __m256 scale = _mm256_load_ps(job.scales[segment] + slot);
#pragma GCC unroll 4
        for (int head = 0; head < kHeads; ++head) {
          float* const scores = job.scores[head] + slot;
          const __m256 before = segment == 0 ? _mm256_setzero_ps() : _mm256_load_ps(scores);
          const __m256 result = _mm256_cvtepi32_ps(accumulator[head][i]);
          _mm256_store_ps(scores, _mm256_fmadd_ps(result, scale, before));
        }
      }
    }
  }
}

// All query heads, block by block.
template <Bits kBits, Operand kOperand>
void key_heads(KeyJob job, int heads, Prefetch prefetch) {
  Pacer pacer(prefetch, head_blocks(heads) * job.quads);  // 4 chunks, steps of 4 quads
  for (int done = 0; done < heads;) {
    const int block = head_block(heads - done);
    if (block == 4) {
      key_block<kBits, kOperand, 4>(job, pacer);
    } else if (block == 2) {
      key_block<kBits, kOperand, 2>(job, pacer);
    } else {
      key_block<kBits, kOperand, 1>(job, pacer);
    }
    job.codes += block * kRowBytes;
    job.bias += block * job.segments;
    job.scores += block;
    done += block;
  }
}

struct Quantized {
  float factor;
  std::int32_t sum;  // of the quantized numbers
};

// row[i] * scale[i] (scale may be null: 1) = factor * codes[i], codes int16 in the order of
// Operand::kWords, or int8. `depth` is a multiple of 16.
template <Operand kOperand>
Quantized quantize_row(const float* row, const float* scale, int depth, std::byte* codes) {
  const auto element = [&](int i) {
    const __m256 x = _mm256_load_ps(row + i);
    return scale == nullptr ? x : _mm256_mul_ps(x, _mm256_load_ps(scale + i));
  };
  const __m256 sign = _mm256_set1_ps(-0.0F);
  __m256 largest = _mm256_setzero_ps();
  for (int i = 0; i < depth; i += 8) {
    largest = _mm256_max_ps(largest, _mm256_andnot_ps(sign, element(i)));
  }
  const float limit = kOperand == Operand::kWords ? 32767 : 127;
  const float maximum = largest_lane(largest);
  // Below 1e-30 everything counts as zero: its reciprocal would overflow.
  const __m256 inverse = _mm256_set1_ps(maximum > 1e-30F ? limit / maximum : 0.0F);
  __m256i sum = _mm256_setzero_si256();
  for (int i = 0; i < depth; i += 16) {
    const __m256i low = _mm256_cvtps_epi32(_mm256_mul_ps(element(i), inverse));
    const __m256i high = _mm256_cvtps_epi32(_mm256_mul_ps(element(i + 8), inverse));
    sum = _mm256_add_epi32(sum, _mm256_add_epi32(low, high));
    // Quads 0, 2, 1, 3 to 0, 1, 2, 3.
    const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(low, high), 0xD8);
    if constexpr (kOperand == Operand::kWords) {
      _mm256_store_si256(reinterpret_cast<__m256i*>(codes + 2 * i),
                         _mm256_shufflehi_epi16(_mm256_shufflelo_epi16(words, 0xD8), 0xD8));
    } else {
      _mm_store_si128(
          reinterpret_cast<__m128i*>(codes + i),
          _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1)));
    }
  }
  alignas(32) std::int32_t lanes[8];
  _mm256_store_si256(reinterpret_cast<__m256i*>(lanes), sum);
  std::int32_t total = 0;
  for (const std::int32_t lane : lanes) total += lane;
  return {maximum / limit, total};
}

// Sum of the quantized numbers of depths [first, end), multiples of 16.
template <Operand kOperand>
std::int32_t sum_of_codes(const std::byte* codes, int first, int end) {
  std::int32_t sum = 0;
  for (int i = first; i < end; ++i) {
    if constexpr (kOperand == Operand::kWords) {
      std::int16_t word;
      std::memcpy(&word, codes + 2 * i, 2);
      sum += word;
    } else {
      sum += static_cast<std::int8_t>(codes[i]);
    }
  }
  return sum;
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

// The planes as the kernel reads them.
template <Bits kBits>
const std::byte* readable_planes(const std::byte* planes, int quads, DecodeScratch& scratch) {
  if constexpr (unpacked_first(kBits)) {
    unpack_plain<kBits>(planes, quads, scratch.plain_codes);
    return scratch.plain_codes;
  }
  return planes;
}

template <Bits kBits, Operand kOperand>
void row_wise_keys(const DecodePlan& plan, const DecodeQuery& query, const std::byte* page,
                   Prefetch prefetch, DecodeScratch& scratch) {
  const TensorFormat& format = plan.key_format;
  const int quads = format.depth / 4;
  pick_all(page + format.scales_offset, plan.key_picks, plan.key_segments, plan.key_unit,
           scratch.scales);
  for (int head = 0; head < plan.heads; ++head) {
    scratch.factor[head] = query.factor[head];
    scratch.offset[head] = 0;
  }
  key_heads<kBits, kOperand>(
      {readable_planes<kBits>(page + format.planes_offset, quads, scratch), quads,
       plan.key_segments, plan.key_segment_depth / 4, scratch.scales,
       reinterpret_cast<const std::byte*>(query.codes), query.bias, scratch.scores},
      plan.heads, prefetch);
  if (format.has_centers()) {
    pick_all(page + format.centers_offset, plan.key_picks, plan.key_segments, nullptr,
             scratch.centers);
    add_row_centers(plan, query, scratch);
  }
}

template <Bits kBits, Operand kOperand>
void depth_wise_keys(const DecodePlan& plan, const DecodeQuery& query, const std::byte* page,
                     Prefetch prefetch, DecodeScratch& scratch) {
  const TensorFormat& format = plan.key_format;
  const int quads = format.depth / 4;
  const int picks = (format.depth + 63) / 64;
  std::byte* const codes = reinterpret_cast<std::byte*>(scratch.query_codes[0]);
  pick_all(page + format.scales_offset, plan.key_picks, picks, nullptr, scratch.scales);
  if (format.has_centers()) {
    pick_all(page + format.centers_offset, plan.key_picks, picks, nullptr, scratch.centers);
  }
  for (int head = 0; head < plan.heads; ++head) {
    const float* row = query.rows + head * query.stride;
    const Quantized q =
        quantize_row<kOperand>(row, scratch.scales[0], format.depth, codes + head * kRowBytes);
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
  }
  // One segment: the row scales are the accumulators' units.
  key_heads<kBits, kOperand>({readable_planes<kBits>(page + format.planes_offset, quads, scratch),
                              quads, 1, quads, reinterpret_cast<const float(*)[64]>(plan.key_unit),
                              codes, scratch.zero_bias, scratch.scores},
                             plan.heads, prefetch);
}

template <Operand kOperand>
void quantize_queries(const DecodePlan& plan, DecodeQuery& query) {
  const int depth = plan.key_format.depth;
  const std::int64_t top_code = levels(plan.key_format.spec.bits) - 1;
  for (int head = 0; head < plan.heads; ++head) {
    std::byte* const codes = reinterpret_cast<std::byte*>(query.codes) + head * kRowBytes;
    const float* const row = query.rows + head * query.stride;
    query.factor[head] = quantize_row<kOperand>(row, nullptr, depth, codes).factor;
    for (int segment = 0; segment < plan.key_segments; ++segment) {
      const int first = segment * plan.key_segment_depth;
      const int end =
          first + plan.key_segment_depth < depth ? first + plan.key_segment_depth : depth;
      const std::int32_t sum = sum_of_codes<kOperand>(codes, first, end);
      // Half a unit of the quantized q at most is lost where the middle is not whole.
      query.bias[head * plan.key_segments + segment] =
          static_cast<std::int32_t>(-top_code * sum / 2);
      query.sums[head * plan.key_segments + segment] = static_cast<float>(sum);
    }
  }
}

template <Bits kBits>
KeyKernel key_kernel(const TensorFormat& format, int terms) {
  KeyKernel kernel;
  describe<Codes<kBits>>(kernel);
  constexpr Operand kFast = key_operand(kBits, 1);
  if (format.depth_wise) {
    kernel.run =
        terms == 2 ? depth_wise_keys<kBits, Operand::kWords> : depth_wise_keys<kBits, kFast>;
  } else {
    kernel.run = terms == 2 ? row_wise_keys<kBits, Operand::kWords> : row_wise_keys<kBits, kFast>;
  }
  return kernel;
}

}  // namespace

KeyKernel avx2_key_kernel(const TensorFormat& format, int terms) {
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
      return avx2_half_keys();
  }
  return {};
}

void avx2_quantize_query(const DecodePlan& plan, DecodeQuery& query) {
  if (key_operand(plan.key_format.spec.bits, plan.key_terms) == Operand::kWords) {
    quantize_queries<Operand::kWords>(plan, query);
  } else {
    quantize_queries<Operand::kKeyBytes>(plan, query);
  }
}

}  // namespace kvq
