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
// How weights are quantized is told in decode_avx512_weights.h.
// Cost for head_dim 128, 4 query heads: 512 VPDPBUSD = 256 cycles a page, the weights of two blocks
// about 120, the output's updates about 80, latency between them about 50.
#include "kvq/attention/cpu/decode_avx512_kernels.h"
#include "kvq/attention/cpu/decode_avx512_weights.h"

namespace kvq {
namespace {

// The middle code as the kernel sees codes: 8-bit codes are shifted by 128.
float middle_operand(Bits bits) { return middle(bits) - (bits == Bits::k8 ? 128.0F : 0.0F); }

// Steps of the pacer in one pass over one block.
constexpr int pass_steps(Split split) { return split == Split::kTurns ? 8 : 4; }

// Adds the quads of one part of a block; planes and operand at the block's first quad.
template <typename Source, Split kSplit, int kPart, int kFirst, int kHeads, int kCount>
KVQ_INLINE void dot_part(PlaneCursor planes, const std::byte* operand, Pacer& pacer,
                         __m512i (&accumulator)[kHeads][kCount]) {
  if constexpr (kSplit == Split::kWhole) {
    dot<Source, false, kFirst>(planes, operand, 64, 16, pacer, accumulator);
  } else if constexpr (kSplit == Split::kTurns) {
    for (int group = 0; group < 4; ++group) {
      pacer.step();
      dot_quad<Source, false, 2 * kPart, kFirst>(planes, operand, 64, accumulator);
      dot_quad<Source, false, 2 * kPart + 1, kFirst>(planes, operand, 64, accumulator);
      planes.low += 128 * Source::kLow;
      planes.high += 128 * Source::kHigh;
      operand += 16;
    }
  } else {
#pragma GCC unroll 2
    for (int group = kPart; group < 4; group += 2) {
      const PlaneCursor at{planes.low + 128 * Source::kLow * group,
                           planes.high + 128 * Source::kHigh * group};
      dot<Source, false, kFirst>(at, operand + 16 * group, 64, 4, pacer, accumulator);
    }
  }
}

// One part of one block of 64 channels for kHeads heads: output += factor * sum.
//   codes    [virtual heads][64]
//   factors  [heads], of the part
template <typename Source, Split kSplit, int kPart, int kHeads, int kFirst>
KVQ_INLINE void depth_wise_part(const std::byte* block, const std::uint8_t (*codes)[64],
                                const float* factors, float* output, int output_stride,
                                Pacer& pacer) {
  constexpr int kTerms = terms_of(kSplit);
  constexpr int kVirtual = kHeads * kTerms;
  constexpr int kCount = pass_width(kVirtual);
  __m512i accumulator[kVirtual][kCount];
#pragma GCC unroll 8
  for (int v = 0; v < kVirtual; ++v) {
#pragma GCC unroll 4
    for (int i = 0; i < kCount; ++i) accumulator[v][i] = _mm512_setzero_si512();
  }
  dot_part<Source, kSplit, kPart, kFirst>(planes_at<Source>(block, 16, 0),
                                          reinterpret_cast<const std::byte*>(codes), pacer,
                                          accumulator);
#pragma GCC unroll 8
  for (int head = 0; head < kHeads; ++head) {
    const __m512 factor = _mm512_set1_ps(factors[head]);
#pragma GCC unroll 4
    for (int i = 0; i < kCount; ++i) {
      float* const at = output + head * output_stride + 16 * (kFirst + i);
      _mm512_store_ps(at, _mm512_fmadd_ps(total<kTerms, kHeads>(accumulator, head, i), factor,
                                          _mm512_load_ps(at)));
    }
  }
}

template <Bits kBits, Split kSplit, int kHeads, int kFirst>
KVQ_INLINE void depth_wise_pass(const std::byte* block, const std::uint8_t (*codes)[64],
                                const float* factors, float* output, int output_stride,
                                Pacer& pacer) {
  using Source = Codes<kBits, false>;
  depth_wise_part<Source, kSplit, 0, kHeads, kFirst>(block, codes, factors, output, output_stride,
                                                     pacer);
  if constexpr (parts_of(kSplit) == 2) {
    depth_wise_part<Source, kSplit, 1, kHeads, kFirst>(block, codes, factors + kHeads, output,
                                                       output_stride, pacer);
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

// Quantized weights of one block of channels, and what all its channels get: center [16 lanes] +=
// sum p center - factor middle (sum of the quantized p).
template <Bits kBits, Split kSplit, int kHeads>
KVQ_INLINE void start_block(const DecodePlan& plan, int block, int first_head,
                            std::uint8_t (*codes)[64], float* factors, DecodeScratch& scratch) {
  const float(*weights)[64] = scratch.scores + first_head;
  const __m512 mid = _mm512_set1_ps(middle_operand(kBits));
  constexpr int kLast = (parts_of(kSplit) - 1) * kHeads;
  quantize_weights<kSplit, kHeads>(plan, weights, scratch.scales[block], codes, factors);
#pragma GCC unroll 8
  for (int head = 0; head < kHeads; ++head) {
    float* const center = scratch.center[first_head + head] + 16 * block;
    const __m512 sums = _mm512_cvtepi32_ps(quad_sums<kHeads, terms_of(kSplit)>(codes, head));
    const __m512 factor = _mm512_mask_blend_ps(second_quads(kSplit), _mm512_set1_ps(factors[head]),
                                               _mm512_set1_ps(factors[kLast + head]));
    __m512 x = _mm512_fnmadd_ps(_mm512_mul_ps(sums, mid), factor, _mm512_load_ps(center));
    if (plan.value_format.has_centers()) {
      for (int i = 0; i < 64; i += 16) {
        x = _mm512_fmadd_ps(_mm512_load_ps(weights[head] + i),
                            _mm512_load_ps(scratch.centers[block] + i), x);
      }
    }
    _mm512_store_ps(center, x);
  }
}

template <Bits kBits, Split kSplit, int kHeads>
__attribute__((noinline)) void depth_wise_block(const DecodePlan& plan, const std::byte* page,
                                                int first_head, Pacer& pacer,
                                                DecodeScratch& scratch) {
  const TensorFormat& format = plan.value_format;
  constexpr int kVirtual = kHeads * terms_of(kSplit);
  static_assert(kVirtual * kDecodeMaxBlocks <= 2 * kDecodeMaxHeads);
  alignas(64) float factors[kDecodeMaxBlocks][parts_of(kSplit) * kHeads];
  const int distinct = plan.value_blocks_share ? 1 : format.blocks;
  for (int block = 0; block < distinct; ++block) {
    start_block<kBits, kSplit, kHeads>(
        plan, block, first_head, scratch.weight_codes + block * kVirtual, factors[block], scratch);
  }
  for (int block = 0; block < format.blocks; ++block) {
    const int same = plan.value_blocks_share ? 0 : block;
    const std::uint8_t(*codes)[64] = scratch.weight_codes + same * kVirtual;
    const std::byte* planes = readable_block<kBits>(format, page, block, scratch);
    float* const output = scratch.output + first_head * plan.output_stride + 64 * block;
    depth_wise_pass<kBits, kSplit, kHeads, 0>(planes, codes, factors[same], output,
                                              plan.output_stride, pacer);
    if constexpr (pass_width(kVirtual) == 2) {
      depth_wise_pass<kBits, kSplit, kHeads, 2>(planes, codes, factors[same], output,
                                                plan.output_stride, pacer);
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
  constexpr Split kSplit = kTerms == 1 ? Split::kHalves : Split::kWhole;
  constexpr int kParts = parts_of(kSplit);
  alignas(64) float factors[kParts * kHeads];
  quantize_weights<kSplit, kHeads>(plan, scratch.scores + first_head, nullptr, codes, factors);
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

// Query heads of one block of them; kHalves stands for row-wise parameters.
template <Bits kBits, Split kSplit, bool kDepthWise, int kHeads>
KVQ_INLINE void value_block(const DecodePlan& plan, const std::byte* page, int first_head,
                            Pacer& pacer, DecodeScratch& scratch) {
  if constexpr (kDepthWise) {
    depth_wise_block<kBits, kSplit, kHeads>(plan, page, first_head, pacer, scratch);
  } else {
    row_wise_block<kBits, kHeads, terms_of(kSplit)>(plan, page, first_head, pacer, scratch);
  }
}

template <Bits kBits, Split kSplit, bool kDepthWise>
void value_heads(const DecodePlan& plan, const std::byte* page, Prefetch prefetch,
                 DecodeScratch& scratch) {
  constexpr int kTerms = terms_of(kSplit);
  Pacer pacer(prefetch,
              total_passes(plan.heads, kTerms) * plan.value_format.blocks * pass_steps(kSplit));
  for (int done = 0; done < plan.heads;) {
    const int block = head_block(plan.heads - done, kTerms);
    if (block == 8) {
      if constexpr (kTerms == 1) {
        value_block<kBits, kSplit, kDepthWise, 8>(plan, page, done, pacer, scratch);
      }
    } else if (block == 4) {
      value_block<kBits, kSplit, kDepthWise, 4>(plan, page, done, pacer, scratch);
    } else if (block == 2) {
      value_block<kBits, kSplit, kDepthWise, 2>(plan, page, done, pacer, scratch);
    } else {
      value_block<kBits, kSplit, kDepthWise, 1>(plan, page, done, pacer, scratch);
    }
    done += block;
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
  if constexpr (kTerms == 2) {
    value_heads<kBits, Split::kWhole, kDepthWise>(plan, page, prefetch, scratch);
  } else if constexpr (!kDepthWise) {
    value_heads<kBits, Split::kHalves, kDepthWise>(plan, page, prefetch, scratch);
  } else if (plan.key.order == RowOrder::kQuads) {
    value_heads<kBits, Split::kTurns, kDepthWise>(plan, page, prefetch, scratch);
  } else {
    value_heads<kBits, Split::kGroups, kDepthWise>(plan, page, prefetch, scratch);
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
