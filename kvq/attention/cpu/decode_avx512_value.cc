// Weighted sums of one page's 64 values with AVX-512 VNNI: quantized weights (uint8) x codes
// (int8).
//
//   depth-wise parameters  p~ = p scale[token] is quantized, per block if its scales differ;
//   (a scale per token)    output += factor * sum p8 code; center and -middle sum p8 are the same
//   for
//                          all channels of a block and go to a lane-wise sum of their own
//   row-wise parameters    p is quantized once per page; output += factor * (scale[channel] *
//   (a scale per channel)  (sum p8 code - middle sum p8) + center[channel] sum p8) per depth group
//
// Weights are scaled by their exact maximum of the half page (two terms: of the page): a dominant
// token comes out exact.
// Cost for head_dim 128, 4 query heads: 512 VPDPBUSD = 256 cycles a page, quantization about 40 and
// the output update about 35 cycles a head.
#include "kvq/attention/cpu/decode_avx512_dot.h"
#include "kvq/attention/cpu/decode_avx512_kernels.h"

namespace kvq {
namespace {

// Maxima of four vectors: result[4 n + i] = the largest element of x[i].
KVQ_INLINE __m512 largest_of_four(__m512 a, __m512 b, __m512 c, __m512 d) {
  const __m512 ab = _mm512_max_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
  const __m512 cd = _mm512_max_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
  __m512 x = _mm512_max_ps(
      _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(ab), _mm512_castps_pd(cd))),
      _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(ab), _mm512_castps_pd(cd))));
  x = _mm512_max_ps(x, _mm512_shuffle_f32x4(x, x, 0x4E));
  return _mm512_max_ps(x, _mm512_shuffle_f32x4(x, x, 0xB1));
}

// The largest elements of `kHeads` (1, 2 or a multiple of 4) vectors.
template <int kHeads>
KVQ_INLINE void largest(const __m512 (&x)[kHeads], float* out) {
  if constexpr (kHeads == 1) {
    out[0] = _mm512_reduce_max_ps(x[0]);
  } else if constexpr (kHeads == 2) {
    _mm_storeu_ps(out, _mm512_castps512_ps128(largest_of_four(x[0], x[1], x[0], x[1])));
  } else {
#pragma GCC unroll 4
    for (int h = 0; h < kHeads; h += 4) {
      _mm_storeu_ps(out + h,
                    _mm512_castps512_ps128(largest_of_four(x[h], x[h + 1], x[h + 2], x[h + 3])));
    }
  }
}

// Four vectors of int32 in [0, 255] to bytes in the order of the tokens.
KVQ_INLINE __m512i pack_weights(const __m512i (&x)[4], __m512i order) {
  const __m512i low = _mm512_packus_epi32(x[0], x[1]);
  const __m512i high = _mm512_packus_epi32(x[2], x[3]);
  return _mm512_permutexvar_epi8(order, _mm512_packus_epi16(low, high));
}

// Quantizes weights[h][slot] * scale[slot], none negative: codes [virtual heads][64 tokens],
// factors [parts][heads].
template <int kHeads, int kTerms>
KVQ_INLINE void quantize_weights(const DecodePlan& plan, const float (*weights)[64],
                                 const __m512 (&scale)[4], std::uint8_t (*codes)[64],
                                 float* factors) {
  constexpr float kLimit = kTerms == 2 ? 65535 : 255;
  constexpr int kParts = weight_parts(kTerms);
  __m512 top[kParts * kHeads];
#pragma GCC unroll 8
  for (int head = 0; head < kHeads; ++head) {
#pragma GCC unroll 2
    for (int part = 0; part < kParts; ++part) {
      __m512 x[4];
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) {
        const auto lanes = static_cast<__mmask16>(kParts == 1 ? 0xFFFF
                                                  : part == 0 ? ~plan.second_half[i]
                                                              : plan.second_half[i]);
        x[i] = _mm512_maskz_mul_ps(lanes, _mm512_load_ps(weights[head] + 16 * i), scale[i]);
      }
      top[part * kHeads + head] =
          _mm512_max_ps(_mm512_max_ps(x[0], x[1]), _mm512_max_ps(x[2], x[3]));
    }
  }
  alignas(64) float maximum[kParts * kHeads < 4 ? 4 : kParts * kHeads];
  largest<kParts * kHeads>(top, maximum);
  alignas(64) float inverse[kParts * kHeads];
#pragma GCC unroll 16
  for (int i = 0; i < kParts * kHeads; ++i) {
    // Weights below 1e-30 in a whole part count as zero: their reciprocal would overflow.
    inverse[i] = kLimit / (maximum[i] > 1e-30F ? maximum[i] : 1e-30F);
    factors[i] = maximum[i] * (1 / kLimit);
  }
  const __m512i order = _mm512_load_si512(plan.weight_order);
#pragma GCC unroll 8
  for (int head = 0; head < kHeads; ++head) {
    __m512i q[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      const __m512 p = _mm512_load_ps(weights[head] + 16 * i);
      const __m512 x = _mm512_mask_blend_ps(plan.second_half[i], _mm512_set1_ps(inverse[head]),
                                            _mm512_set1_ps(inverse[(kParts - 1) * kHeads + head]));
      q[i] = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_mul_ps(p, scale[i]), x));
    }
    if constexpr (kTerms == 2) {
      __m512i high[4];
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) {
        high[i] = _mm512_srli_epi32(q[i], 8);
        q[i] = _mm512_and_si512(q[i], _mm512_set1_epi32(255));
      }
      _mm512_store_si512(codes[head], pack_weights(high, order));
    }
    _mm512_store_si512(codes[(kTerms - 1) * kHeads + head], pack_weights(q, order));
  }
}

// Sums of 4 consecutive tokens' quantized weights, [16] as int32; both terms.
template <int kHeads, int kTerms>
KVQ_INLINE __m512i quad_sums(const std::uint8_t (*codes)[64], int head) {
  const __m512i zero = _mm512_setzero_si512();
  const __m512i low =
      _mm512_dpbusd_epi32(zero, _mm512_load_si512(codes[(kTerms - 1) * kHeads + head]), fill(1));
  if constexpr (kTerms == 1) return low;
  const __m512i high = _mm512_dpbusd_epi32(zero, _mm512_load_si512(codes[head]), fill(1));
  return _mm512_add_epi32(_mm512_slli_epi32(high, 8), low);
}

// The middle code as the kernel sees codes: 8-bit codes are shifted by 128.
float middle_operand(Bits bits) { return middle(bits) - (bits == Bits::k8 ? 128.0F : 0.0F); }

// One block of 64 channels for kHeads heads: output += factor * sum; factors [parts][heads].
template <Bits kBits, int kHeads, int kTerms, int kFirst>
KVQ_INLINE void depth_wise_pass(const std::byte* block, const std::uint8_t (*codes)[64],
                                const float* factors, float* output, int output_stride,
                                Pacer& pacer) {
  using Source = Codes<kBits, false>;
  constexpr int kVirtual = kHeads * kTerms;
  constexpr int kCount = pass_width(kVirtual);
  constexpr int kQuads = 16 / weight_parts(kTerms);
  for (int part = 0; part < weight_parts(kTerms); ++part) {
    __m512i accumulator[kVirtual][kCount];
#pragma GCC unroll 8
    for (int v = 0; v < kVirtual; ++v) {
#pragma GCC unroll 4
      for (int i = 0; i < kCount; ++i) accumulator[v][i] = _mm512_setzero_si512();
    }
    dot<Source, false, kFirst>(planes_at<Source>(block, 16, kQuads * part),
                               reinterpret_cast<const std::byte*>(codes) + 4 * kQuads * part, 64,
                               kQuads, pacer, accumulator);
#pragma GCC unroll 8
    for (int head = 0; head < kHeads; ++head) {
      const __m512 factor = _mm512_set1_ps(factors[part * kHeads + head]);
#pragma GCC unroll 4
      for (int i = 0; i < kCount; ++i) {
        float* const at = output + head * output_stride + 16 * (kFirst + i);
        _mm512_store_ps(at, _mm512_fmadd_ps(total<kTerms, kHeads>(accumulator, head, i), factor,
                                            _mm512_load_ps(at)));
      }
    }
  }
}

// The planes of block `block` as the kernel reads them: ternary codes are unpacked to bytes first.
template <Bits kBits>
const std::byte* readable_block(const TensorFormat& format, const std::byte* page, int block,
                                DecodeScratch& scratch) {
  const std::byte* planes = page + format.planes_offset + block * format.block_bytes;
  if constexpr (kBits == Bits::kTernary) {
    unpack_ternary(planes, 16, scratch.plain_codes);
    return scratch.plain_codes;
  }
  return planes;
}

template <Bits kBits, int kHeads, int kTerms>
__attribute__((noinline)) void depth_wise_block(const DecodePlan& plan, const std::byte* page,
                                                int first_head, Pacer& pacer,
                                                DecodeScratch& scratch) {
  const TensorFormat& format = plan.value_format;
  const float(*weights)[64] = scratch.scores + first_head;
  const __m512 mid = _mm512_set1_ps(middle_operand(kBits));
  std::uint8_t(*codes)[64] = scratch.weight_codes;
  constexpr int kLast = (weight_parts(kTerms) - 1) * kHeads;
  alignas(64) float factors[weight_parts(kTerms) * kHeads];
  for (int block = 0; block < format.blocks; ++block) {
    if (block == 0 || !plan.value_blocks_share) {
      __m512 scale[4];
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) scale[i] = _mm512_load_ps(scratch.scales[block] + 16 * i);
      quantize_weights<kHeads, kTerms>(plan, weights, scale, codes, factors);
#pragma GCC unroll 8
      for (int head = 0; head < kHeads; ++head) {
        float* const center = scratch.center[first_head + head] + 16 * block;
        const __m512 sums = _mm512_cvtepi32_ps(quad_sums<kHeads, kTerms>(codes, head));
        const __m512 factor = _mm512_mask_blend_ps(0xFF00, _mm512_set1_ps(factors[head]),
                                                   _mm512_set1_ps(factors[kLast + head]));
        __m512 x = _mm512_fnmadd_ps(_mm512_mul_ps(sums, mid), factor, _mm512_load_ps(center));
        if (format.has_centers()) {
          for (int i = 0; i < 64; i += 16) {
            x = _mm512_fmadd_ps(_mm512_load_ps(weights[head] + i),
                                _mm512_load_ps(scratch.centers[block] + i), x);
          }
        }
        _mm512_store_ps(center, x);
      }
    }
    const std::byte* planes = readable_block<kBits>(format, page, block, scratch);
    float* const output = scratch.output + first_head * plan.output_stride + 64 * block;
    depth_wise_pass<kBits, kHeads, kTerms, 0>(planes, codes, factors, output, plan.output_stride,
                                              pacer);
    if constexpr (pass_width(kHeads * kTerms) == 2) {
      depth_wise_pass<kBits, kHeads, kTerms, 2>(planes, codes, factors, output, plan.output_stride,
                                                pacer);
    }
  }
}

// What the row-wise epilogue needs of one depth group of one block.
struct RowSegment {
  const float* scales;   // [64]
  const float* centers;  // [64] or null
  const float* factors;  // [heads]
  const float* sums;     // [heads], of the quantized weights of the depth group
  float middle;
};

template <Bits kBits, int kHeads, int kTerms, int kFirst>
KVQ_INLINE void row_wise_pass(PlaneCursor planes, const std::uint8_t* codes, int quads,
                              const RowSegment& segment, const float* unit, float* output,
                              int output_stride, Pacer& pacer) {
  using Source = Codes<kBits, false>;
  constexpr int kVirtual = kHeads * kTerms;
  constexpr int kCount = pass_width(kVirtual);
  __m512i accumulator[kVirtual][kCount];
#pragma GCC unroll 8
  for (int v = 0; v < kVirtual; ++v) {
#pragma GCC unroll 4
    for (int i = 0; i < kCount; ++i) accumulator[v][i] = _mm512_setzero_si512();
  }
  dot<Source, false, kFirst>(planes, reinterpret_cast<const std::byte*>(codes), 64, quads, pacer,
                             accumulator);
#pragma GCC unroll 4
  for (int i = 0; i < kCount; ++i) {
    const int at = 16 * (kFirst + i);
    const __m512 scale = _mm512_load_ps(segment.scales + at);
    const __m512 units = _mm512_load_ps(unit + at);
#pragma GCC unroll 8
    for (int head = 0; head < kHeads; ++head) {
      const __m512 sum = _mm512_set1_ps(segment.sums[head]);
      const __m512 shift = _mm512_mul_ps(sum, _mm512_set1_ps(segment.middle));
      __m512 x = _mm512_fmsub_ps(total<kTerms, kHeads>(accumulator, head, i), units, shift);
      x = _mm512_mul_ps(x, scale);
      if (segment.centers != nullptr) {
        x = _mm512_fmadd_ps(_mm512_load_ps(segment.centers + at), sum, x);
      }
      float* const out = output + head * output_stride + at;
      _mm512_store_ps(
          out, _mm512_fmadd_ps(x, _mm512_set1_ps(segment.factors[head]), _mm512_load_ps(out)));
    }
  }
}

template <Bits kBits, int kHeads, int kTerms>
__attribute__((noinline)) void row_wise_block(const DecodePlan& plan, const std::byte* page,
                                              int first_head, Pacer& pacer,
                                              DecodeScratch& scratch) {
  const TensorFormat& format = plan.value_format;
  const int segment_quads = plan.value_segment_depth / 4;
  std::uint8_t(*codes)[64] = scratch.weight_codes;
  constexpr int kParts = weight_parts(kTerms);
  alignas(64) float factors[kParts * kHeads];
  const __m512 one = _mm512_set1_ps(1);
  const __m512 no_scale[4] = {one, one, one, one};
  quantize_weights<kHeads, kTerms>(plan, scratch.scores + first_head, no_scale, codes, factors);
  float sums[kDecodeMaxSegments / 4][kHeads];  // at most four depth groups in 64 tokens
  for (int head = 0; head < kHeads; ++head) {
    const __m512i quads = quad_sums<kHeads, kTerms>(codes, head);
    for (int segment = 0; segment < plan.value_segments; ++segment) {
      const unsigned lanes = ((1U << segment_quads) - 1) << (segment * segment_quads);
      sums[segment][head] =
          static_cast<float>(_mm512_mask_reduce_add_epi32(static_cast<__mmask16>(lanes), quads));
    }
  }
  for (int block = 0; block < format.blocks; ++block) {
    const std::byte* planes = readable_block<kBits>(format, page, block, scratch);
    float* const output = scratch.output + first_head * plan.output_stride + 64 * block;
    for (int segment = 0; segment < plan.value_segments; ++segment) {
      const int pick = block * plan.value_segments + segment;
      const RowSegment part{scratch.scales[pick],
                            format.has_centers() ? scratch.centers[pick] : nullptr,
                            factors + segment * kParts / plan.value_segments * kHeads,
                            sums[segment], middle_operand(kBits)};
      const PlaneCursor at = planes_at<Codes<kBits, false>>(planes, 16, segment * segment_quads);
      const std::uint8_t* operand = codes[0] + segment * plan.value_segment_depth;
      row_wise_pass<kBits, kHeads, kTerms, 0>(at, operand, segment_quads, part, plan.value_unit,
                                              output, plan.output_stride, pacer);
      if constexpr (pass_width(kHeads * kTerms) == 2) {
        row_wise_pass<kBits, kHeads, kTerms, 2>(at, operand, segment_quads, part, plan.value_unit,
                                                output, plan.output_stride, pacer);
      }
    }
  }
}

template <Bits kBits, int kHeads, int kTerms, bool kDepthWise>
KVQ_INLINE void value_block(const DecodePlan& plan, const std::byte* page, int first_head,
                            Pacer& pacer, DecodeScratch& scratch) {
  if constexpr (kDepthWise) {
    depth_wise_block<kBits, kHeads, kTerms>(plan, page, first_head, pacer, scratch);
  } else {
    row_wise_block<kBits, kHeads, kTerms>(plan, page, first_head, pacer, scratch);
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
  Pacer pacer(prefetch, total_passes(plan.heads, kTerms) * format.blocks * 4);
  for (int done = 0; done < plan.heads;) {
    const int block = head_block(plan.heads - done, kTerms);
    if (block == 8) {
      if constexpr (kTerms == 1) {
        value_block<kBits, 8, kTerms, kDepthWise>(plan, page, done, pacer, scratch);
      }
    } else if (block == 4) {
      value_block<kBits, 4, kTerms, kDepthWise>(plan, page, done, pacer, scratch);
    } else if (block == 2) {
      value_block<kBits, 2, kTerms, kDepthWise>(plan, page, done, pacer, scratch);
    } else {
      value_block<kBits, 1, kTerms, kDepthWise>(plan, page, done, pacer, scratch);
    }
    done += block;
  }
}

template <Bits kBits>
ValueKernel value_kernel(const TensorFormat& format, int terms) {
  using Source = Codes<kBits, false>;
  ValueKernel kernel;
  kernel.order = Source::kOrder;
  for (int u = 0; u < 4; ++u) kernel.shift[u] = Source::kShift[u];
  if (terms == 1) {
    kernel.run = format.depth_wise ? values<kBits, 1, true> : values<kBits, 1, false>;
  } else if constexpr (kBits == Bits::k6 || kBits == Bits::k8) {
    kernel.run = format.depth_wise ? values<kBits, 2, true> : values<kBits, 2, false>;
  }
  return kernel;
}

}  // namespace

ValueKernel avx512_value_kernel(const TensorFormat& format, int terms) {
  switch (format.spec.bits) {
    case Bits::k1:
      return value_kernel<Bits::k1>(format, terms);
    case Bits::kTernary:
      return value_kernel<Bits::kTernary>(format, terms);
    case Bits::k2:
      return value_kernel<Bits::k2>(format, terms);
    case Bits::k3:
      return value_kernel<Bits::k3>(format, terms);
    case Bits::k4:
      return value_kernel<Bits::k4>(format, terms);
    case Bits::k5:
      return value_kernel<Bits::k5>(format, terms);
    case Bits::k6:
      return value_kernel<Bits::k6>(format, terms);
    case Bits::k8:
      return value_kernel<Bits::k8>(format, terms);
    case Bits::k16:
      return avx512_half_values();
  }
  return {};
}

}  // namespace kvq
