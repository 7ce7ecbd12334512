// What an instruction set provides to decode one token, and what its kernels work on.
//
// One unit of work is a range of pages of one kv head, for the G query heads that share it. Per
// page:
//   key kernel     scores[h][slot]  = dot of query h with the key of the slot's token
//   softmax        weights[h][slot] = 2^(score - reference), in place; sums
//   value kernel   output[h][slot] += weighted sum over the page's tokens
// Every kernel leaves its 64 rows (K: tokens, V: channels of a block) in the order in which its
// accumulators hold them, "slots": slot 16 u + lane is lane `lane` of accumulator u. Nobody sorts:
// the permutations are folded into the tables (DecodePlan) by which parameters and weights are
// read. So the K and V halves are chosen apart and meet only in an array of G x 64 floats in L1.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kvq/base/half.h"
#include "kvq/codec/page_format.h"

namespace kvq {

inline constexpr int kDecodeMaxHeads = 16;      // query heads per kv head
inline constexpr int kDecodeMaxChannels = 256;  // head_dim, padded to whole blocks
inline constexpr int kDecodeMaxBlocks = kDecodeMaxChannels / kBlockRows;
inline constexpr int kDecodeMaxSegments = 16;                // depth groups of a block
inline constexpr int kQueryCodeStride = kDecodeMaxChannels;  // bytes of one term of one query head

// A score that is as good as none, and the reference of an empty state: finite, so that differences
// are numbers.
inline constexpr float kNoScore = -1e30F;
// A score may be this far (log2) above the running reference before sums and outputs are rescaled:
// after the first pages of a unit that hardly ever happens.
inline constexpr float kReferenceSlack = 8;

// Parts of a page whose weights have a maximum, and so a resolution, of their own: one uint8 term
// of the weights is scaled by the largest of each half page (32 tokens), which cuts its rounding
// error by a quarter where many tokens matter; two terms are fine enough for the whole page.
constexpr int weight_parts(int terms) { return terms == 1 ? 2 : 1; }

// The order in which accumulators hold the 64 rows of a block; row = 16 j + 2 g + r (page layout).
enum class RowOrder : std::uint8_t {
  kNatural,  // slot = row
  kQuads,    // accumulator (g >> 2, r), lane 4 (g & 3) + j:    4, 5, 6, 8 bits
  kPairs,    // accumulator (r, j & 1),  lane 2 g + (j >> 1):   2 bits
  kHalves,   // accumulator (r, j & 1),  lane 8 (j >> 1) + g:   3 bits
  kSingles,  // accumulator j,           lane 8 r + g:          1 bit
};

// The row that a slot holds.
int row_of_slot(RowOrder order, int slot);

// Picks 64 fp16 numbers out of two 64-byte lines of a parameter section: element s of the result is
// element index[s] of the two lines joined.
struct alignas(64) LinePick {
  std::uint16_t index[64];
  std::int32_t first_line;   // bytes from the start of the section
  std::int32_t second_line;  // the same line again where one is enough
  // The same by runs of 8 elements (16 bytes), for instruction sets that cannot permute two lines:
  // run n is the union of piece[n][0 .. pieces - 1], each 16 bytes at `offset` in the section with
  // their bytes shuffled, 0x80 for none.
  struct alignas(16) Piece {
    std::uint8_t shuffle[16];
    std::int32_t offset;
  };
  int pieces;
  Piece piece[8][8];
};

// Lines of the next page, fetched a few at a time from inside the dot loops: a burst would fill the
// miss queue and stall the loads behind it.
struct Prefetch {
  const std::byte* at;   // next line to fetch
  const std::byte* end;  // at == end: nothing to fetch
};

struct DecodePlan;
struct DecodeQuery;
struct DecodeScratch;

// `page` is the start of the page.
using KeyFunction = void (*)(const DecodePlan& plan, const DecodeQuery& query,
                             const std::byte* page, Prefetch prefetch, DecodeScratch& scratch);
using ValueFunction = void (*)(const DecodePlan& plan, const std::byte* page, Prefetch prefetch,
                               DecodeScratch& scratch);

// A kernel for one half of a page. Its accumulators u hold the results times 2^shift[u], because
// bit fields are multiplied where they lie.
template <typename Function>
struct HalfPageKernel {
  Function run = nullptr;  // null: this format is not supported
  RowOrder order = RowOrder::kNatural;
  std::int8_t shift[4] = {0, 0, 0, 0};
};
using KeyKernel = HalfPageKernel<KeyFunction>;
using ValueKernel = HalfPageKernel<ValueFunction>;

struct DecodeKernels {
  // `terms`: int8 terms of q, uint8 terms of the weights (1 or 2), or what is as exact or more;
  // nothing at 16 bits.
  KeyKernel (*key)(const TensorFormat& format, int terms);
  ValueKernel (*value)(const TensorFormat& format, int terms);
  // Quantizes query.rows into codes, factor and bias; for formats whose keys have row-wise
  // parameters, whose q is the same for all pages.
  void (*quantize_query)(const DecodePlan& plan, DecodeQuery& query);
  // Scores to weights: x = score * factor + offset; references, sums, outputs and centers rescaled
  // where a score is far above the reference.
  void (*softmax)(int heads, int output_stride, int center_count, DecodeScratch& scratch);
  // Scores of `count` (1 to 64) exact rows, [count, head_dim] fp16, with query.plain; slots from
  // count on are a very negative number.
  void (*exact_keys)(const DecodeQuery& query, const Half* rows, int count, int heads, int head_dim,
                     DecodeScratch& scratch);
  // Adds weights x rows to output, in natural channel order.
  void (*exact_values)(const Half* rows, int count, int heads, int head_dim, int output_stride,
                       DecodeScratch& scratch);
};

// The kernels of the instruction sets that have any.
extern const DecodeKernels kDecodeKernelsAvx2;
extern const DecodeKernels kDecodeKernelsAvx512;

// Everything about a format that does not change from page to page.
struct DecodePlan {
  TensorFormat key_format;
  TensorFormat value_format;
  std::size_t page_bytes;
  int heads;  // G
  int key_terms;
  int value_terms;
  KeyKernel key;
  ValueKernel value;
  int output_stride;  // floats of one head's output: head_dim padded to whole blocks

  // K. Row-wise: one pick per segment (depth group), in slot order. Depth-wise: one pick per 64
  // channels, in channel order, and one segment.
  int key_segments;
  int key_segment_depth;
  LinePick key_picks[kDecodeMaxSegments];
  alignas(64) float key_unit[64];  // 2^-shift of the slot's accumulator

  // V. Depth-wise: one pick per block, in the slot order of the keys (blocks may share one: the
  // picks are then equal). Row-wise: [block][segment], in the slot order of the values.
  int value_segments;
  int value_segment_depth;
  bool value_blocks_share;
  LinePick value_picks[kDecodeMaxSegments];
  alignas(64) float value_unit[64];  // 2^-shift of the slot's accumulator
  // What the finished output is multiplied by: value_unit where nothing else brings it in.
  alignas(64) float output_unit[64];
  std::uint8_t value_row[64];  // channel of the block that a slot holds
  // Where byte `token` of a head's quantized weights comes from, after four 16-lane vectors of
  // int32 (slot order of the keys) were packed to bytes by two rounds of in-lane packs.
  alignas(64) std::uint8_t weight_order[64];
  // The same in terms of 16-byte runs: [run][token] = place in the run, or 0x80 if not in this run.
  alignas(64) std::uint8_t weight_shuffle[4][64];
  alignas(64) std::uint8_t token_slot[64];  // the slot of a token
  std::uint16_t second_half[4];  // lanes of vector u (slot order of the keys) with tokens 32 to 63
};

// The query heads of one kv head of one item. Rows have depth padded to a multiple of 64 (zeros).
struct DecodeQuery {
  int stride;          // floats of a row
  float* plain;        // [G][stride], times softmax scale and log2(e)
  float* rows;         // [G][stride], the same, rotated as the keys are
  std::int8_t* codes;  // quantized rows, [2 G][kQueryCodeStride] in the kernels' own order
  float* factor;       // [G]
  std::int32_t* bias;  // [G][segments], -middle * (sum of the quantized q)
  float* sums;         // [G][segments], sum of the quantized q: what row centers are multiplied by
};

// What a worker keeps in L1 while it goes through a unit. [h] strides are fixed, heads from G on
// are not touched.
struct alignas(64) DecodeScratch {
  float scores[kDecodeMaxHeads][64];  // scores, then weights; slot order of the keys
  float factor[kDecodeMaxHeads];      // score = factor * scores + offset, log2 units
  float offset[kDecodeMaxHeads];
  float reference[kDecodeMaxHeads];
  float sum[kDecodeMaxHeads][16];  // lanes of the running sum of weights
  // [h][block][16] lanes of a number that is added to all channels of the block.
  float center[kDecodeMaxHeads][kDecodeMaxBlocks * 16];
  float output[kDecodeMaxHeads * kDecodeMaxChannels];  // [h][output_stride], slot order, scaled

  float scales[kDecodeMaxSegments][64];  // parameters of the page, picked
  float centers[kDecodeMaxSegments][64];
  std::int8_t query_codes[2 * kDecodeMaxHeads][kQueryCodeStride];  // depth-wise keys
  std::int32_t zero_bias[kDecodeMaxHeads * kDecodeMaxSegments];    // stays zero
  alignas(64) std::uint8_t weight_codes[2 * kDecodeMaxHeads][64];
  std::byte plain_codes[64 * kDecodeMaxChannels];  // codes unpacked to bytes (ternary)
};

}  // namespace kvq
