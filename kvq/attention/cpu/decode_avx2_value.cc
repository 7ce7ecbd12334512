// Weighted sums of one page's 64 values with AVX2: quantized weights x codes.
//
//   depth-wise parameters    p~ = weight * scale[token] is quantized; middle and center come after
//   (a scale per token)      the dot, the same for all channels of a block
//   row-wise parameters      the weights are quantized; scale[channel] * (code - middle) and
//   (a scale per channel)    center[channel] are applied to the sums of each group of tokens
//
// Codes of at most 4 bits take uint8 weights, scaled by the largest of each half page; wider codes
// int16 weights, scaled by the largest of the page. A head's quantized weights have kRowBytes
// whichever they are.
// Cost for head_dim 128, 4 query heads, 2-bit codes: 1024 VPMADDUBSW = 512 cycles a page at least;
// measured 750 for the products, 400 for quantization, 350 for adding to the output.
#include "kvq/attention/cpu/decode_avx2_dot.h"
#include "kvq/attention/cpu/decode_avx2_kernels.h"

namespace kvq {
namespace {

constexpr int kRowBytes = 2 * kPageTokens;

constexpr Operand value_operand(Bits bits) {
  return narrow(bits) ? Operand::kWeightBytes : Operand::kWords;
}

// Parts of the page with a scale of their own.
constexpr int parts_of(Operand operand) { return operand == Operand::kWords ? 1 : 2; }

// Four vectors of 16 int32 (two registers each) in [0, 255] to bytes in the order of the tokens.
KVQ_INLINE void pack_bytes(const __m256i (&x)[8], const DecodePlan& plan, __m256i (&bytes)[2]) {
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
#pragma GCC unroll 2
  for (int half = 0; half < 2; ++half) {
    bytes[half] = _mm256_setzero_si256();
#pragma GCC unroll 4
    for (int run = 0; run < 4; ++run) {
      const __m256i pick =
          _mm256_load_si256(reinterpret_cast<const __m256i*>(plan.weight_shuffle[run] + 32 * half));
      bytes[half] = _mm256_or_si256(bytes[half], _mm256_shuffle_epi8(runs[run], pick));
    }
  }
}

// The same for [0, 32767], to the words of Operand::kWords.
KVQ_INLINE void store_words(const __m256i (&x)[8], const DecodePlan& plan, std::byte* out) {
  __m256i rest[8];
  __m256i top[8];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {
    rest[i] = _mm256_and_si256(x[i], _mm256_set1_epi32(255));
    top[i] = _mm256_srli_epi32(x[i], 8);
  }
  __m256i low[2];
  __m256i high[2];
  pack_bytes(rest, plan, low);
  pack_bytes(top, plan, high);
  // Tokens 4 T + 0, 1, 2, 3 to 0, 2, 1, 3.
  const __m256i order = _mm256_broadcastsi128_si256(
      _mm_setr_epi8(0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15));
#pragma GCC unroll 2
  for (int half = 0; half < 2; ++half) {
    const __m256i first = _mm256_shuffle_epi8(_mm256_unpacklo_epi8(low[half], high[half]), order);
    const __m256i second = _mm256_shuffle_epi8(_mm256_unpackhi_epi8(low[half], high[half]), order);
    store_bytes(_mm256_permute2x128_si256(first, second, 0x20), out + 64 * half);
    store_bytes(_mm256_permute2x128_si256(first, second, 0x31), out + 64 * half + 32);
  }
}

// Lanes of 32 slots, from `slot` (0 or 32) on, whose tokens are 32 to 63: in the row orders of this
// instruction set's keys the same of every 8.
KVQ_INLINE __m256 second_half(const DecodePlan& plan, int slot) {
  const __m256i bits = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
  const __m256i lanes = _mm256_set1_epi32(plan.second_half[slot / 16]);
  return _mm256_castsi256_ps(_mm256_cmpeq_epi32(_mm256_and_si256(lanes, bits), bits));
}

// Quantizes weights[slot] * scale[slot] (scale may be null: 1), none negative, to `codes`;
// factors[part] is what one unit is worth.
template <Operand kOperand>
KVQ_INLINE void quantize_weights(const DecodePlan& plan, const float* weights, const float* scale,
                                 std::byte* codes, float (&factors)[2]) {
  constexpr float kLimit = kOperand == Operand::kWords ? 32767 : 255;
  constexpr int kParts = parts_of(kOperand);
  __m256 x[8];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {
    x[i] = _mm256_load_ps(weights + 8 * i);
    if (scale != nullptr) x[i] = _mm256_mul_ps(x[i], _mm256_load_ps(scale + 8 * i));
  }
  const __m256 second[2] = {second_half(plan, 0), second_half(plan, 32)};
  __m256 largest[2];
#pragma GCC unroll 2
  for (int i = 0; i < 2; ++i) {
    largest[i] = _mm256_max_ps(_mm256_max_ps(x[4 * i], x[4 * i + 1]),
                               _mm256_max_ps(x[4 * i + 2], x[4 * i + 3]));
  }
  __m256 inverse[kParts];
#pragma GCC unroll 2
  for (int part = 0; part < kParts; ++part) {
    __m256 both = _mm256_max_ps(largest[0], largest[1]);
    if constexpr (kParts == 2) {
      both = part == 0 ? _mm256_max_ps(_mm256_andnot_ps(second[0], largest[0]),
                                       _mm256_andnot_ps(second[1], largest[1]))
                       : _mm256_max_ps(_mm256_and_ps(second[0], largest[0]),
                                       _mm256_and_ps(second[1], largest[1]));
    }
    const float maximum = largest_lane(both);
    // Weights below 1e-30 in a whole part count as zero: their reciprocal would overflow.
    inverse[part] = _mm256_set1_ps(kLimit / (maximum > 1e-30F ? maximum : 1e-30F));
    factors[part] = maximum * (1 / kLimit);
  }
  __m256i q[8];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {
    __m256 by = inverse[0];
    if constexpr (kParts == 2) by = _mm256_blendv_ps(by, inverse[1], second[i / 4]);
    q[i] = _mm256_cvtps_epi32(_mm256_mul_ps(x[i], by));
  }
  if constexpr (kOperand == Operand::kWords) {
    factors[1] = factors[0];
    store_words(q, plan, codes);
  } else {
    __m256i bytes[2];
    pack_bytes(q, plan, bytes);
    store_bytes(bytes[0], codes);
    store_bytes(bytes[1], codes + 32);
  }
}

// Sums of the quantized weights of tokens 32 half and up, of several tokens a lane.
template <Operand kOperand>
KVQ_INLINE __m256i partial_sums(const std::byte* codes, int half) {
  const __m256i one = _mm256_set1_epi16(1);
  if constexpr (kOperand == Operand::kWords) {
    return _mm256_add_epi32(_mm256_madd_epi16(load_packed(codes + 64 * half), one),
                            _mm256_madd_epi16(load_packed(codes + 64 * half + 32), one));
  }
  return _mm256_madd_epi16(_mm256_maddubs_epi16(load_packed(codes + 32 * half), fill(1)), one);
}

// Sum of the quantized weights of tokens [first, first + count), multiples of 16.
template <Operand kOperand>
float sum_of_weights(const std::byte* codes, int first, int count) {
  std::int32_t sum = 0;
  for (int token = first; token < first + count; ++token) {
    if constexpr (kOperand == Operand::kWords) {
      std::int16_t word;
      std::memcpy(&word, codes + 2 * token, 2);
      sum += word;
    } else {
      sum += static_cast<std::uint8_t>(codes[token]);
    }
  }
  return static_cast<float>(sum);
}

// What the heads of one pass share.
template <int kHeads>
struct Weights {
  const std::byte* codes;  // [heads][kRowBytes]
  float factors[kHeads][2];
  float* output;  // [heads], 64 floats of the block each, output_stride floats apart
  int output_stride;
};

template <Bits kBits, int kHeads>
KVQ_INLINE void depth_wise_pass(const std::byte* block, const Weights<kHeads>& weights,
                                Pacer& pacer) {
  using Source = Codes<kBits>;
  constexpr Operand kOperand = value_operand(kBits);
  constexpr int kQuads = 16 / parts_of(kOperand);
  for (int chunk = 0; chunk < 4; ++chunk) {
    for (int part = 0; part < parts_of(kOperand); ++part) {
      __m256i accumulator[kHeads][2];
      for (auto& head : accumulator) head[0] = head[1] = _mm256_setzero_si256();
      dot<Source, kOperand>(planes_at<Source>(block, 16, kQuads * part), chunk,
                            weights.codes + 4 * operand_bytes(kOperand) * kQuads * part, kRowBytes,
                            kQuads, pacer, accumulator);
#pragma GCC unroll 4
      for (int head = 0; head < kHeads; ++head) {
        const __m256 factor = _mm256_set1_ps(weights.factors[head][part]);
        float* const output = weights.output + head * weights.output_stride;
#pragma GCC unroll 2
        for (int i = 0; i < 2; ++i) {
          float* const at = output + Source::slot(chunk, i);
          const __m256 result = _mm256_cvtepi32_ps(accumulator[head][i]);
          _mm256_store_ps(at, _mm256_fmadd_ps(result, factor, _mm256_load_ps(at)));
        }
      }
    }
  }
}

// Adds what all channels of a block have in common: center and middle.
template <Operand kOperand>
void add_center(const TensorFormat& format, const std::byte* codes, const float (&factors)[2],
                const float* weights, const float* centers, float* lanes) {
  for (int half = 0; half < 2; ++half) {
    const __m256 scale = _mm256_set1_ps(-factors[half] * middle(format.spec.bits));
    __m256 x = _mm256_load_ps(lanes + 8 * half);
    x = _mm256_fmadd_ps(_mm256_cvtepi32_ps(partial_sums<kOperand>(codes, half)), scale, x);
    if (format.has_centers()) {
      for (int i = 8 * half; i < 64; i += 16) {
        x = _mm256_fmadd_ps(_mm256_load_ps(weights + i), _mm256_load_ps(centers + i), x);
      }
    }
    _mm256_store_ps(lanes + 8 * half, x);
  }
}

// `planes`: of all blocks, `block_bytes` apart.
template <Bits kBits, int kHeads>
__attribute__((noinline)) void depth_wise_block(const DecodePlan& plan, const std::byte* planes,
                                                int block_bytes, int first_head, Pacer& pacer,
                                                DecodeScratch& scratch) {
  constexpr Operand kOperand = value_operand(kBits);
  const TensorFormat& format = plan.value_format;
  std::byte* const codes = reinterpret_cast<std::byte*>(scratch.weight_codes[0]);
  Weights<kHeads> weights;
  weights.codes = codes;
  weights.output_stride = plan.output_stride;
  for (int block = 0; block < format.blocks; ++block) {
    weights.output = scratch.output + first_head * plan.output_stride + 64 * block;
    for (int head = 0; head < kHeads; ++head) {
      const int h = first_head + head;
      if (block > 0 && plan.value_blocks_share) continue;
      quantize_weights<kOperand>(plan, scratch.scores[h], scratch.scales[block],
                                 codes + head * kRowBytes, weights.factors[head]);
      add_center<kOperand>(format, codes + head * kRowBytes, weights.factors[head],
                           scratch.scores[h], scratch.centers[block],
                           scratch.center[h] + 16 * block);
    }
    depth_wise_pass<kBits, kHeads>(planes + block * block_bytes, weights, pacer);
  }
}

// Row-wise parameters of one depth group of one block.
struct RowSegment {
  const float* scales;   // [64]
  const float* centers;  // [64] or null
  const float* units;    // [64]
  float middle;
};

template <Bits kBits, int kHeads>
KVQ_INLINE void row_wise_pass(PlaneCursor planes, int first_token, int quads,
                              const Weights<kHeads>& weights, const float* sums,
                              const RowSegment& segment, Pacer& pacer) {
  using Source = Codes<kBits>;
  constexpr Operand kOperand = value_operand(kBits);
  for (int chunk = 0; chunk < 4; ++chunk) {
    __m256i accumulator[kHeads][2];
    for (auto& head : accumulator) head[0] = head[1] = _mm256_setzero_si256();
    dot<Source, kOperand>(planes, chunk, weights.codes + operand_bytes(kOperand) * first_token,
                          kRowBytes, quads, pacer, accumulator);
    for (int head = 0; head < kHeads; ++head) {
      const __m256 sum = _mm256_set1_ps(sums[head]);
      const __m256 factor = _mm256_set1_ps(weights.factors[head][first_token / 32]);
      const __m256 shift = _mm256_set1_ps(sums[head] * segment.middle);
#pragma GCC unroll 2
      for (int i = 0; i < 2; ++i) {
        const int slot = Source::slot(chunk, i);
        const __m256 result = _mm256_cvtepi32_ps(accumulator[head][i]);
        __m256 x = _mm256_fmsub_ps(result, _mm256_load_ps(segment.units + slot), shift);
        x = _mm256_mul_ps(x, _mm256_load_ps(segment.scales + slot));
        if (segment.centers != nullptr) {
          x = _mm256_fmadd_ps(_mm256_load_ps(segment.centers + slot), sum, x);
        }
        float* const at = weights.output + head * weights.output_stride + slot;
        _mm256_store_ps(at, _mm256_fmadd_ps(x, factor, _mm256_load_ps(at)));
      }
    }
  }
}

template <Bits kBits, int kHeads>
__attribute__((noinline)) void row_wise_block(const DecodePlan& plan, const std::byte* planes,
                                              int block_bytes, int first_head, Pacer& pacer,
                                              DecodeScratch& scratch) {
  constexpr Operand kOperand = value_operand(kBits);
  const TensorFormat& format = plan.value_format;
  const int depth = plan.value_segment_depth;
  std::byte* const codes = reinterpret_cast<std::byte*>(scratch.weight_codes[0]);
  Weights<kHeads> weights;
  weights.codes = codes;
  weights.output_stride = plan.output_stride;
  float sums[kPageTokens / 16][kHeads];
  for (int head = 0; head < kHeads; ++head) {
    quantize_weights<kOperand>(plan, scratch.scores[first_head + head], nullptr,
                               codes + head * kRowBytes, weights.factors[head]);
    for (int segment = 0; segment < plan.value_segments; ++segment) {
      sums[segment][head] =
          sum_of_weights<kOperand>(codes + head * kRowBytes, segment * depth, depth);
    }
  }
  for (int block = 0; block < format.blocks; ++block) {
    weights.output = scratch.output + first_head * plan.output_stride + 64 * block;
    for (int segment = 0; segment < plan.value_segments; ++segment) {
      const int pick = block * plan.value_segments + segment;
      const RowSegment part{scratch.scales[pick],
                            format.has_centers() ? scratch.centers[pick] : nullptr, plan.value_unit,
                            middle(kBits)};
      row_wise_pass<kBits, kHeads>(
          planes_at<Codes<kBits>>(planes + block * block_bytes, 16, segment * depth / 4),
          segment * depth, depth / 4, weights, sums[segment], part, pacer);
    }
  }
}

template <Bits kBits, bool kDepthWise, int kHeads>
KVQ_INLINE void value_block(const DecodePlan& plan, const std::byte* planes, int block_bytes,
                            int first_head, Pacer& pacer, DecodeScratch& scratch) {
  if constexpr (kDepthWise) {
    depth_wise_block<kBits, kHeads>(plan, planes, block_bytes, first_head, pacer, scratch);
  } else {
    row_wise_block<kBits, kHeads>(plan, planes, block_bytes, first_head, pacer, scratch);
  }
}

template <Bits kBits, bool kDepthWise>
void values(const DecodePlan& plan, const std::byte* page, Prefetch prefetch,
            DecodeScratch& scratch) {
  const TensorFormat& format = plan.value_format;
  const int picks = kDepthWise ? (plan.value_blocks_share ? 1 : format.blocks)
                               : format.blocks * plan.value_segments;
  pick_all(page + format.scales_offset, plan.value_picks, picks, nullptr, scratch.scales);
  if (format.has_centers()) {
    pick_all(page + format.centers_offset, plan.value_picks, picks, nullptr, scratch.centers);
  }
  const std::byte* planes = page + format.planes_offset;
  int block_bytes = static_cast<int>(format.block_bytes);
  if constexpr (unpacked_first(kBits)) {
    constexpr int kPlainBytes = kBlockRows * kPageTokens;
    for (int block = 0; block < format.blocks; ++block) {
      unpack_plain<kBits>(planes + block * block_bytes, 16,
                          scratch.plain_codes + block * kPlainBytes);
    }
    planes = scratch.plain_codes;
    block_bytes = kPlainBytes;
  }
  // 4 chunks, steps of 4 quads.
  Pacer pacer(prefetch, head_blocks(plan.heads) * format.blocks * 16);
  for (int done = 0; done < plan.heads;) {
    const int block = head_block(plan.heads - done);
    if (block == 4) {
      value_block<kBits, kDepthWise, 4>(plan, planes, block_bytes, done, pacer, scratch);
    } else if (block == 2) {
      value_block<kBits, kDepthWise, 2>(plan, planes, block_bytes, done, pacer, scratch);
    } else {
      value_block<kBits, kDepthWise, 1>(plan, planes, block_bytes, done, pacer, scratch);
    }
    done += block;
  }
}

template <Bits kBits>
ValueKernel value_kernel(const TensorFormat& format) {
  ValueKernel kernel;
  describe<Codes<kBits>>(kernel);
  kernel.run = format.depth_wise ? values<kBits, true> : values<kBits, false>;
  return kernel;
}

}  // namespace

ValueKernel avx2_value_kernel(const TensorFormat& format, int /*terms*/) {
  switch (format.spec.bits) {
    case Bits::k1:
      return value_kernel<Bits::k1>(format);
    case Bits::kTernary:
      return value_kernel<Bits::kTernary>(format);
    case Bits::k2:
      return value_kernel<Bits::k2>(format);
    case Bits::k3:
      return value_kernel<Bits::k3>(format);
    case Bits::k4:
      return value_kernel<Bits::k4>(format);
    case Bits::k5:
      return value_kernel<Bits::k5>(format);
    case Bits::k6:
      return value_kernel<Bits::k6>(format);
    case Bits::k8:
      return value_kernel<Bits::k8>(format);
    case Bits::k16:
      return avx2_half_values();
  }
  return {};
}

}  // namespace kvq
