// The integer dot products of one block of 64 rows with AVX2, for the decode kernels of keys and
// values, and the small vector helpers that they share.
//
//   accumulator[head][i], lane l  +=  sum over depths d of  code[row(chunk, i, l)][d] *
//   operand[head][d]
//
// Two kinds of operands:
//   words  int16 x the codes widened to int16, VPMADDWD: any width of codes, no term to join. The
//          codes of depths 4 T, 4 T + 2 lie in the even bytes of a lane, 4 T + 1, 4 T + 3 in the
//          odd ones; so do the operand's: [T][0, 2, 1, 3].
//   bytes  int8 (keys) or uint8 (weights) x codes of at most four bits, VPMADDUBSW: half the
//          products. Eight quads are summed in int16 (keys: 8 x 2 x 128 x 15; weights: unsigned,
//          8 x 2 x 255 x 15, from -32768 on), then widened.
// Registers are few (16): a chunk of two code registers serves four heads. Per chunk and quad of 4
// heads: words 16 VPMADDWD (two a cycle on Zen 5), 16 VPADDD, 8 broadcasts, 4 to widen; bytes 8
// VPMADDUBSW, 8 VPADDW, 4 broadcasts; and unpacking.
#pragma once

#include <cstring>

#include "kvq/attention/cpu/decode_avx2_codes.h"

namespace kvq {
namespace {

// Written as assembly because GCC 12 takes a function that only prefetches for pure and drops it.
KVQ_INLINE void prefetch_line(const std::byte* address) {
  asm volatile("prefetcht0 %0" : : "m"(*reinterpret_cast<const char*>(address)));
}

// Hands out prefetches evenly over `steps` (1 or more) calls of step().
class Pacer {
 public:
  KVQ_INLINE Pacer(Prefetch prefetch, int steps) : at_(prefetch.at), end_(prefetch.end) {
    if (steps < 1) __builtin_unreachable();
    const int lines = static_cast<int>((prefetch.end - prefetch.at) / 64);
    lines_per_step_ = (lines + steps - 1) / steps;
  }
  KVQ_INLINE void step() {
    for (int i = 0; i < lines_per_step_ && at_ < end_; ++i, at_ += 64) prefetch_line(at_);
  }

 private:
  const std::byte* at_;
  const std::byte* end_;
  int lines_per_step_;
};

// Heads of the next pass over the planes when `left` are left, and passes for all `heads`.
constexpr int head_block(int left) { return left >= 4 ? 4 : left >= 2 ? 2 : 1; }
constexpr int head_blocks(int heads) { return heads / 4 + (heads % 4 + 1) / 2; }

enum class Operand : std::uint8_t {
  kWords,        // int16
  kKeyBytes,     // int8
  kWeightBytes,  // uint8
};
constexpr int operand_bytes(Operand operand) { return operand == Operand::kWords ? 2 : 1; }

// Whether bytes will do for operands of codes of this width.
constexpr bool narrow(Bits bits) {
  return bits == Bits::k1 || bits == Bits::kTernary || bits == Bits::k2 || bits == Bits::k3 ||
         bits == Bits::k4;
}

KVQ_INLINE __m256i broadcast_four(const std::byte* at) {
  std::int32_t four;
  std::memcpy(&four, at, 4);
  return _mm256_set1_epi32(four);
}

// sum += x, in this order: GCC 12 would rather add the products of many quads to each other first,
// which takes more registers than there are.
KVQ_INLINE void add_words(__m256i& sum, __m256i x) {
  sum = _mm256_add_epi16(sum, x);
  asm("" : "+x"(sum));
}
KVQ_INLINE void add_lanes(__m256i& sum, __m256i x) {
  sum = _mm256_add_epi32(sum, x);
  asm("" : "+x"(sum));
}

// One quad of a chunk. Words: sums are int32; bytes: int16.
template <typename Source, Operand kOperand, int kTurn, int kHeads>
KVQ_INLINE void dot_quad(const PlaneCursor& block, int chunk, const std::byte* operand, int stride,
                         __m256i (&sum)[kHeads][2]) {
  const PlaneCursor at{block.low + 32 * Source::kLow * kTurn,
                       block.high + 32 * Source::kHigh * kTurn};
  operand += 4 * operand_bytes(kOperand) * kTurn;
  __m256i codes[2];
  Source::template load<kTurn>(at, chunk, codes);
  if constexpr (kOperand == Operand::kWords) {
#pragma GCC unroll 2
    for (int odd = 0; odd < 2; ++odd) {
      __m256i words[2];
#pragma GCC unroll 2
      for (int i = 0; i < 2; ++i) {
        words[i] = odd != 0 ? _mm256_srli_epi16(codes[i], 8)
                            : _mm256_and_si256(codes[i], _mm256_set1_epi16(0x00FF));
      }
#pragma GCC unroll 4
      for (int head = 0; head < kHeads; ++head) {
        const __m256i x = broadcast_four(operand + head * stride + 4 * odd);
#pragma GCC unroll 2
        for (int i = 0; i < 2; ++i) {
          add_lanes(sum[head][i], _mm256_madd_epi16(words[i], x));
        }
      }
    }
  } else {
#pragma GCC unroll 4
    for (int head = 0; head < kHeads; ++head) {
      const __m256i x = broadcast_four(operand + head * stride);
#pragma GCC unroll 2
      for (int i = 0; i < 2; ++i) {
        add_words(sum[head][i], kOperand == Operand::kKeyBytes ? _mm256_maddubs_epi16(codes[i], x)
                                                               : _mm256_maddubs_epi16(x, codes[i]));
      }
    }
  }
}

// Adds four quads and moves on.
template <typename Source, Operand kOperand, int kHeads>
KVQ_INLINE void dot_four(PlaneCursor& block, int chunk, const std::byte*& operand, int stride,
                         __m256i (&sum)[kHeads][2]) {
  dot_quad<Source, kOperand, 0>(block, chunk, operand, stride, sum);
  dot_quad<Source, kOperand, 1>(block, chunk, operand, stride, sum);
  dot_quad<Source, kOperand, 2>(block, chunk, operand, stride, sum);
  dot_quad<Source, kOperand, 3>(block, chunk, operand, stride, sum);
  block.low += 128 * Source::kLow;
  block.high += 128 * Source::kHigh;
  operand += 16 * operand_bytes(kOperand);
}

// Adds `quads` (a multiple of 4) depth quads of a chunk to int32 accumulators.
//   block    the planes at the first quad, which must be a multiple of 4
//   operand  [kHeads] rows, `stride` bytes apart
template <typename Source, Operand kOperand, int kHeads>
KVQ_INLINE void dot(PlaneCursor block, int chunk, const std::byte* operand, int stride, int quads,
                    Pacer& pacer, __m256i (&accumulator)[kHeads][2]) {
  if constexpr (kOperand == Operand::kWords) {
    for (int quad = 0; quad < quads; quad += 4) {
      pacer.step();
      dot_four<Source, kOperand>(block, chunk, operand, stride, accumulator);
    }
  } else {
    constexpr int kStart = kOperand == Operand::kWeightBytes ? -32768 : 0;
    for (int first = 0; first < quads; first += 8) {
      __m256i sum[kHeads][2];
      for (auto& head : sum) head[0] = head[1] = _mm256_set1_epi16(kStart);
      const int end = first + 8 < quads ? first + 8 : quads;
#pragma GCC unroll 2
      for (int quad = first; quad < end; quad += 4) {
        pacer.step();
        dot_four<Source, kOperand>(block, chunk, operand, stride, sum);
      }
#pragma GCC unroll 4
      for (int head = 0; head < kHeads; ++head) {
#pragma GCC unroll 2
        for (int i = 0; i < 2; ++i) {
          const __m256i pairs = _mm256_madd_epi16(sum[head][i], _mm256_set1_epi16(1));
          accumulator[head][i] = _mm256_add_epi32(
              accumulator[head][i], _mm256_sub_epi32(pairs, _mm256_set1_epi32(2 * kStart)));
        }
      }
    }
  }
}

// The planes of a block of `quads` quads from quad `quad` (a multiple of 4) on.
template <typename Source>
KVQ_INLINE PlaneCursor planes_at(const std::byte* block, int quads, int quad) {
  return {block + 32 * Source::kLow * quad,
          block + 32 * Source::kLow * quads + 32 * Source::kHigh * quad};
}

// Picks `count` vectors of parameters, times `unit` [64] where it is not null.
inline void pick_all(const std::byte* section, const LinePick* picks, int count, const float* unit,
                     float (*out)[64]) {
  for (int n = 0; n < count; ++n) {
    const LinePick& pick = picks[n];
    for (int run = 0; run < 8; ++run) {
      __m128i halves = _mm_setzero_si128();
      for (int k = 0; k < pick.pieces; ++k) {
        const LinePick::Piece& piece = pick.piece[run][k];
        const __m128i from =
            _mm_load_si128(reinterpret_cast<const __m128i*>(section + piece.offset));
        const __m128i order = _mm_load_si128(reinterpret_cast<const __m128i*>(piece.shuffle));
        halves = _mm_or_si128(halves, _mm_shuffle_epi8(from, order));
      }
      __m256 x = _mm256_cvtph_ps(halves);
      if (unit != nullptr) x = _mm256_mul_ps(x, _mm256_load_ps(unit + 8 * run));
      _mm256_store_ps(out[n] + 8 * run, x);
    }
  }
}

KVQ_INLINE float largest_lane(__m256 x) {
  __m128 y = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  y = _mm_max_ps(y, _mm_movehl_ps(y, y));
  return _mm_cvtss_f32(_mm_max_ss(y, _mm_movehdup_ps(y)));
}

KVQ_INLINE float sum_of_lanes(__m256 x) {
  __m128 y = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  y = _mm_add_ps(y, _mm_movehl_ps(y, y));
  return _mm_cvtss_f32(_mm_add_ss(y, _mm_movehdup_ps(y)));
}

}  // namespace
}  // namespace kvq
