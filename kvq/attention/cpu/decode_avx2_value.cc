// Weighted sums of one page's 64 values with AVX2: quantized weights (uint8) x codes. The
// arithmetic is that of decode_avx512_value.cc, for one query head (two terms) or two (one term) at
// a time. Cost for head_dim 128, 4 query heads: about 800 cycles a page at 2 bits.
#include "kvq/attention/cpu/decode_avx2_codes.h"
#include "kvq/attention/cpu/decode_avx2_kernels.h"

namespace kvq {
namespace {

// Four vectors of 16 int32 (two registers each) in [0, 255] to bytes in the order of the tokens.
KVQ_INLINE void pack_weights(const __m256i (&x)[8], const DecodePlan& plan, std::uint8_t* out) {
  __m256i packed[2];  // 16-byte runs L = 0, 1 and 2, 3 of DecodePlan::weight_order
#pragma GCC unroll 2
  for (int half = 0; half < 2; ++half) {
    packed[half] = _mm256_packus_epi16(_mm256_packus_epi32(x[half], x[2 + half]),
                                       _mm256_packus_epi32(x[4 + half], x[6 + half]));
  }
  const __m256i runs[4] = {_mm256_permute2x128_si256(packed[0], packed[0], 0x00),
                           _mm256_permute2x128_si256(packed[0], packed[0], 0x11),
                           _mm256_permute2x128_si256(packed[1], packed[1], 0x00),
                           _mm256_permute2x128_si256(packed[1], packed[1], 0x11)};
  for (int half = 0; half < 64; half += 32) {
    __m256i bytes = _mm256_setzero_si256();
#pragma GCC unroll 4
    for (int run = 0; run < 4; ++run) {
      const __m256i pick =
          _mm256_load_si256(reinterpret_cast<const __m256i*>(plan.weight_shuffle[run] + half));
      bytes = _mm256_or_si256(bytes, _mm256_shuffle_epi8(runs[run], pick));
    }
    _mm256_store_si256(reinterpret_cast<__m256i*>(out + half), bytes);
  }
}

// Lanes of the 8 slots from `slot` on whose tokens are 32 to 63.
KVQ_INLINE __m256 second_half(const DecodePlan& plan, int slot) {
  const __m256i bits = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
  const __m256i lanes = _mm256_set1_epi32(plan.second_half[slot / 16] >> (slot % 16));
  return _mm256_castsi256_ps(_mm256_cmpeq_epi32(_mm256_and_si256(lanes, bits), bits));
}

// Quantizes weights[slot] * scale[slot] (scale may be null: 1), none negative, to codes
// [terms][64 tokens]; factors [parts].
template <int kTerms>
void quantize_weights(const DecodePlan& plan, const float* weights, const float* scale,
                      std::uint8_t (*codes)[64], float (&factors)[weight_parts(kTerms)]) {
  constexpr float kLimit = kTerms == 2 ? 65535 : 255;
  constexpr int kParts = weight_parts(kTerms);
  const auto element = [&](int i) {
    const __m256 p = _mm256_load_ps(weights + i);
    return scale == nullptr ? p : _mm256_mul_ps(p, _mm256_load_ps(scale + i));
  };
  __m256 top[2] = {_mm256_setzero_ps(), _mm256_setzero_ps()};
  for (int i = 0; i < 64; i += 8) {
    const __m256 x = element(i);
    const __m256 second = kParts == 2 ? second_half(plan, i) : _mm256_setzero_ps();
    top[0] = _mm256_max_ps(top[0], _mm256_andnot_ps(second, x));
    top[1] = _mm256_max_ps(top[1], _mm256_and_ps(second, x));
  }
  __m256 inverse[kParts];
  for (int part = 0; part < kParts; ++part) {
    const float maximum = largest_lane(top[part]);
    // Weights below 1e-30 in a whole part count as zero: their reciprocal would overflow.
    inverse[part] = _mm256_set1_ps(kLimit / (maximum > 1e-30F ? maximum : 1e-30F));
    factors[part] = maximum * (1 / kLimit);
  }
  __m256i q[8];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {
    __m256 x = inverse[0];
    if constexpr (kParts == 2) x = _mm256_blendv_ps(x, inverse[1], second_half(plan, 8 * i));
    q[i] = _mm256_cvtps_epi32(_mm256_mul_ps(element(8 * i), x));
  }
  if constexpr (kTerms == 2) {
    __m256i high[8];
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) {
      high[i] = _mm256_srli_epi32(q[i], 8);
      q[i] = _mm256_and_si256(q[i], _mm256_set1_epi32(255));
    }
    pack_weights(high, plan, codes[0]);
  }
  pack_weights(q, plan, codes[kTerms - 1]);
}

// Sums of 4 consecutive tokens' quantized weights: [8] of tokens 32 half and up, as int32.
template <int kTerms>
KVQ_INLINE __m256i quad_sums(const std::uint8_t (*codes)[64], int half) {
  __m256i sum = _mm256_setzero_si256();
#pragma GCC unroll 2
  for (int term = 0; term < kTerms; ++term) {
    const __m256i bytes =
        _mm256_load_si256(reinterpret_cast<const __m256i*>(codes[term] + 32 * half));
    const __m256i quads =
        _mm256_madd_epi16(_mm256_maddubs_epi16(bytes, fill(1)), _mm256_set1_epi16(1));
    sum = _mm256_add_epi32(_mm256_slli_epi32(sum, 8), quads);
  }
  return sum;
}

// What the heads of one pass share.
template <int kHeads, int kTerms>
struct Weights {
  const std::uint8_t (*codes)[64];  // [heads * terms]
  float factors[kHeads][weight_parts(kTerms)];
  float* output[kHeads];  // [64] of the block
};

template <Bits kBits, int kHeads, int kTerms>
KVQ_INLINE void depth_wise_pass(const std::byte* block, int part,
                                const Weights<kHeads, kTerms>& weights, Pacer& pacer) {
  using Source = Codes<kBits>;
  constexpr int kRows = kHeads * kTerms;
  constexpr int kQuads = 16 / weight_parts(kTerms);
  for (int chunk = 0; chunk < Source::kChunks; ++chunk) {
    __m256i accumulator[kRows][2];
    for (auto& row : accumulator) row[0] = row[1] = _mm256_setzero_si256();
    dot<Source, false>(planes_at<Source>(block, 16, kQuads * part), chunk,
                       reinterpret_cast<const std::byte*>(weights.codes) + 4 * kQuads * part, 64,
                       kQuads, pacer, accumulator);
#pragma GCC unroll 2
    for (int head = 0; head < kHeads; ++head) {
      __m256 result[2];
      join<Source, kTerms>(accumulator, head, result);
      const __m256 factor = _mm256_set1_ps(weights.factors[head][part]);
#pragma GCC unroll 2
      for (int i = 0; i < kResults<Source>; ++i) {
        float* const at = weights.output[head] + Source::slot(chunk, i);
        _mm256_store_ps(at, _mm256_fmadd_ps(result[i], factor, _mm256_load_ps(at)));
      }
    }
  }
}

// Adds what all channels of a block have in common: center and middle.
template <int kTerms>
void add_center(const TensorFormat& format, const std::uint8_t (*codes)[64],
                const float (&factors)[weight_parts(kTerms)], const float* weights,
                const float* centers, float* lanes) {
  for (int half = 0; half < 2; ++half) {
    const float factor = factors[half * weight_parts(kTerms) / 2];
    const __m256 scale = _mm256_set1_ps(-factor * middle(format.spec.bits));
    __m256 x = _mm256_load_ps(lanes + 8 * half);
    x = _mm256_fmadd_ps(_mm256_cvtepi32_ps(quad_sums<kTerms>(codes, half)), scale, x);
    if (format.has_centers()) {
      for (int i = 8 * half; i < 64; i += 16) {
        x = _mm256_fmadd_ps(_mm256_load_ps(weights + i), _mm256_load_ps(centers + i), x);
      }
    }
    _mm256_store_ps(lanes + 8 * half, x);
  }
}

template <Bits kBits, int kHeads, int kTerms>
__attribute__((noinline)) void depth_wise_heads(const DecodePlan& plan, const std::byte* page,
                                                int first_head, Pacer& pacer,
                                                DecodeScratch& scratch) {
  const TensorFormat& format = plan.value_format;
  Weights<kHeads, kTerms> weights;
  weights.codes = scratch.weight_codes;
  for (int block = 0; block < format.blocks; ++block) {
    for (int head = 0; head < kHeads; ++head) {
      const int h = first_head + head;
      weights.output[head] = scratch.output + h * plan.output_stride + 64 * block;
      if (block > 0 && plan.value_blocks_share) continue;
      std::uint8_t(*codes)[64] = scratch.weight_codes + head * kTerms;
      quantize_weights<kTerms>(plan, scratch.scores[h], scratch.scales[block], codes,
                               weights.factors[head]);
      add_center<kTerms>(format, codes, weights.factors[head], scratch.scores[h],
                         scratch.centers[block], scratch.center[h] + 16 * block);
    }
    const std::byte* planes = page + format.planes_offset + block * format.block_bytes;
    for (int part = 0; part < weight_parts(kTerms); ++part) {
      depth_wise_pass<kBits, kHeads, kTerms>(planes, part, weights, pacer);
    }
  }
}

// Row-wise parameters of one depth group of one block.
struct RowSegment {
  const float* scales;   // [64]
  const float* centers;  // [64] or null
  const float* units;    // [64]
  float middle;
};

template <Bits kBits, int kHeads, int kTerms>
KVQ_INLINE void row_wise_pass(PlaneCursor planes, int first_token, int quads,
                              const Weights<kHeads, kTerms>& weights, const float* sums,
                              const RowSegment& segment, Pacer& pacer) {
  using Source = Codes<kBits>;
  constexpr int kRows = kHeads * kTerms;
  for (int chunk = 0; chunk < Source::kChunks; ++chunk) {
    __m256i accumulator[kRows][2];
    for (auto& row : accumulator) row[0] = row[1] = _mm256_setzero_si256();
    dot<Source, false>(planes, chunk,
                       reinterpret_cast<const std::byte*>(weights.codes) + first_token, 64, quads,
                       pacer, accumulator);
#pragma GCC unroll 2
    for (int head = 0; head < kHeads; ++head) {
      __m256 result[2];
      join<Source, kTerms>(accumulator, head, result);
      const __m256 sum = _mm256_set1_ps(sums[head]);
      const int part = first_token * weight_parts(kTerms) / kPageTokens;
      const __m256 factor = _mm256_set1_ps(weights.factors[head][part]);
      const __m256 shift = _mm256_set1_ps(sums[head] * segment.middle);
#pragma GCC unroll 2
      for (int i = 0; i < kResults<Source>; ++i) {
        const int slot = Source::slot(chunk, i);
        __m256 x = _mm256_fmsub_ps(result[i], _mm256_load_ps(segment.units + slot), shift);
        x = _mm256_mul_ps(x, _mm256_load_ps(segment.scales + slot));
        if (segment.centers != nullptr) {
          x = _mm256_fmadd_ps(_mm256_load_ps(segment.centers + slot), sum, x);
        }
        float* const at = weights.output[head] + slot;
        _mm256_store_ps(at, _mm256_fmadd_ps(x, factor, _mm256_load_ps(at)));
      }
    }
  }
}

// Sum of the quantized weights of tokens [first, first + count).
template <int kTerms>
float sum_of_weights(const std::uint8_t (*codes)[64], int first, int count) {
  std::int32_t sum = 0;
  for (int term = 0; term < kTerms; ++term) {
    sum *= 256;
    for (int token = first; token < first + count; ++token) sum += codes[term][token];
  }
  return static_cast<float>(sum);
}

template <Bits kBits, int kHeads, int kTerms>
__attribute__((noinline)) void row_wise_heads(const DecodePlan& plan, const std::byte* page,
                                              int first_head, Pacer& pacer,
                                              DecodeScratch& scratch) {
  const TensorFormat& format = plan.value_format;
  const int depth = plan.value_segment_depth;
  Weights<kHeads, kTerms> weights;
  weights.codes = scratch.weight_codes;
  float sums[kPageTokens / 16][kHeads];
  for (int head = 0; head < kHeads; ++head) {
    std::uint8_t(*codes)[64] = scratch.weight_codes + head * kTerms;
    quantize_weights<kTerms>(plan, scratch.scores[first_head + head], nullptr, codes,
                             weights.factors[head]);
    for (int segment = 0; segment < plan.value_segments; ++segment) {
      sums[segment][head] = sum_of_weights<kTerms>(codes, segment * depth, depth);
    }
  }
  for (int block = 0; block < format.blocks; ++block) {
    for (int head = 0; head < kHeads; ++head) {
      weights.output[head] = scratch.output + (first_head + head) * plan.output_stride + 64 * block;
    }
    const std::byte* planes = page + format.planes_offset + block * format.block_bytes;
    for (int segment = 0; segment < plan.value_segments; ++segment) {
      const int pick = block * plan.value_segments + segment;
      const RowSegment part{scratch.scales[pick],
                            format.has_centers() ? scratch.centers[pick] : nullptr, plan.value_unit,
                            middle(kBits)};
      row_wise_pass<kBits, kHeads, kTerms>(planes_at<Codes<kBits>>(planes, 16, segment * depth / 4),
                                           segment * depth, depth / 4, weights, sums[segment], part,
                                           pacer);
    }
  }
}

template <Bits kBits, int kTerms, bool kDepthWise>
void values(const DecodePlan& plan, const std::byte* page, Prefetch prefetch,
            DecodeScratch& scratch) {
  const TensorFormat& format = plan.value_format;
  const int picks = kDepthWise ? (plan.value_blocks_share ? 1 : format.blocks)
                               : format.blocks * plan.value_segments;
  pick_all(page + format.scales_offset, plan.value_picks, picks, nullptr, scratch.scales);
  if (format.has_centers()) {
    pick_all(page + format.centers_offset, plan.value_picks, picks, nullptr, scratch.centers);
  }
  constexpr int kPair = kTerms == 1 ? 2 : 1;            // heads of a pass
  const int passes = (plan.heads + kPair - 1) / kPair;  // over the whole depth
  Pacer pacer(prefetch, passes * format.blocks * Codes<kBits>::kChunks * 4);
  for (int head = 0; head < plan.heads; head += kPair) {
    if (head + kPair > plan.heads) {
      if constexpr (kDepthWise) {
        depth_wise_heads<kBits, 1, kTerms>(plan, page, head, pacer, scratch);
      } else {
        row_wise_heads<kBits, 1, kTerms>(plan, page, head, pacer, scratch);
      }
    } else if constexpr (kDepthWise) {
      depth_wise_heads<kBits, kPair, kTerms>(plan, page, head, pacer, scratch);
    } else {
      row_wise_heads<kBits, kPair, kTerms>(plan, page, head, pacer, scratch);
    }
  }
}

template <Bits kBits>
ValueKernel value_kernel(const TensorFormat& format, int terms) {
  ValueKernel kernel;
  describe<Codes<kBits>>(kernel);
  if (terms == 1) {
    kernel.run = format.depth_wise ? values<kBits, 1, true> : values<kBits, 1, false>;
  } else if constexpr (kBits == Bits::k8) {
    kernel.run = format.depth_wise ? values<kBits, 2, true> : values<kBits, 2, false>;
  }
  return kernel;
}

}  // namespace

ValueKernel avx2_value_kernel(const TensorFormat& format, int terms) {
  switch (format.spec.bits) {
    case Bits::k1:
      return value_kernel<Bits::k1>(format, terms);
    case Bits::k2:
      return value_kernel<Bits::k2>(format, terms);
    case Bits::k3:
      return value_kernel<Bits::k3>(format, terms);
    case Bits::k4:
      return value_kernel<Bits::k4>(format, terms);
    case Bits::k8:
      return value_kernel<Bits::k8>(format, terms);
    case Bits::k16:
      return avx2_half_values();
    case Bits::kTernary:
    case Bits::k5:
    case Bits::k6:
      break;  // served by tiles
  }
  return {};
}

}  // namespace kvq
