// Up to sixteen exact rows that follow each other in memory: the keys and values are fp16,
// unrotated; sums are in units of 1. They are copied to shared memory ahead, as pages are: 16 rows
// of keys, then 16 of values.
//
//   K: lane 4g + t reads channels 4t .. 4t+3 of rows 2g, 2g+1     (8 bytes a row and step)
//   V: lane 4g + t reads channels 2g, 2g+1 of rows 4t .. 4t+3     (4 bytes a row and tile)
//
// Rows start in the same bank, so that a load takes four turns; that is less than what copying them
// apart takes.
//
// Cost, 128 channels: 200 instructions for 8 KiB.
#pragma once

#include <limits>

#include "kvq/attention/cuda/device/query.cuh"
#include "kvq/attention/cuda/device/softmax.cuh"
#include "kvq/attention/cuda/device/work.cuh"

namespace kvq::cuda {

// The row of the tables that a sequence reads.
__device__ __forceinline__ int table_of(const DecodeParams& params, int sequence) {
  return params.tables == nullptr ? sequence : params.tables[sequence];
}

// Where the rows of a unit lie, of one kv head.
struct ExactUnit {
  const std::uint16_t* key;
  const std::uint16_t* value;
  int count;
};

// Rows of unit `unit`.
__device__ __forceinline__ int exact_rows_of(const SequenceLength& length, int unit) {
  const int sink_units = exact_units_of(length.sinks);
  const int left = unit < sink_units ? length.sinks - kExactUnitRows * unit
                                     : length.tail - kExactUnitRows * (unit - sink_units);
  return min(left, kExactUnitRows);
}

inline __device__ __noinline__ ExactUnit find_exact_unit(const DecodeParams& params, int sequence,
                                                         int kv_head, int unit) {
  const SequenceLength length = params.lengths[sequence];
  const int sink_units = exact_units_of(length.sinks);
  const bool tail = unit >= sink_units;
  const RowBlock rows = tail ? params.tail : params.sinks;
  int first = kExactUnitRows * (tail ? unit - sink_units : unit);
  std::int64_t block = sequence;
  if (params.row_blocks != nullptr) {
    const std::int32_t* const blocks =
        params.row_blocks +
        static_cast<std::int64_t>(table_of(params, sequence)) * params.row_blocks_stride;
    if (tail) {
      block = blocks[kRowBlocksHeader + length.pages - blocks[1] + first / kPageTokens];
      first %= kPageTokens;
    } else {
      block = blocks[0];
    }
  }
  const std::int64_t offset =
      block * rows.sequence_stride + kv_head * rows.head_stride + first * params.head_dim;
  return {rows.key + offset, rows.value + offset, exact_rows_of(length, unit)};
}

// Values of rows that do not exist, as zeros: their weights are zero, but what else is there might
// be no number.
__device__ __forceinline__ void clear_missing_values(std::uint32_t stage, int head_dim, int count,
                                                     Lane lane) {
  const std::uint32_t end = stage + exact_unit_bytes(head_dim);
  for (std::uint32_t at = stage + 2 * head_dim * (kExactUnitRows + count) + 16 * lane.index;
       at < end; at += 16 * 32) {
    store_shared_16(at, make_uint4(0, 0, 0, 0));
  }
  __syncwarp();
}

// Channel `channel` of rows that have head_dim of them: 16 from the end at most, so that what is
// read beyond belongs to the row. kWhole: there is nothing beyond.
template <bool kWhole>
__device__ __forceinline__ int channel_in_row(int channel, int head_dim) {
  return kWhole ? channel : min(channel, head_dim - 16);
}

// Scores of the 16 rows in `stage`, in units of log2; rows from `count` on do not exist: -infinity.
// Channels from head_dim on are others', of a query that is zero there.
template <bool kWhole, int kSteps, int kColumns>
__device__ __forceinline__ void exact_scores(std::uint32_t stage, int head_dim, int count,
                                             Lane lane, const Query<kSteps, kColumns>& query,
                                             FragmentC (&scores)[1][kColumns]) {
  const std::uint32_t keys = stage + 4 * head_dim * lane.g + 8 * lane.t;
  FragmentC sums[2][kColumns] = {};  // of even and odd steps: a chain half as long
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
    FragmentA a;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const uint2 words =
          load_shared_8(keys + 2 * head_dim * r + 2 * channel_in_row<kWhole>(16 * step, head_dim));
      a[r] = __byte_perm(words.x, words.y, 0x5410);
      a[r + 2] = __byte_perm(words.x, words.y, 0x7632);
    }
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
      multiply_add(sums[step % 2][c], a, query.operand.b[step][c][0], query.operand.b[step][c][1]);
    }
  }
#pragma unroll
  for (int c = 0; c < kColumns; ++c) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const float score = (sums[0][c][e] + sums[1][c][e]) * query.factor;
      const bool exists = 2 * lane.g + (e >> 1) < count;
      scores[0][c][e] = exists ? score : -std::numeric_limits<float>::infinity();
    }
  }
}

// Adds the values of the rows in `stage`. Channels from head_dim on are others': nobody reads what
// becomes of them.
template <bool kWhole, int kBlocks, int kColumns>
__device__ __forceinline__ void add_exact_values(std::uint32_t stage, int head_dim, Lane lane,
                                                 const Operand<1, kColumns>& weights,
                                                 SoftmaxSum<kBlocks, kColumns>& sum) {
  const std::uint32_t values = stage + 2 * head_dim * (kExactUnitRows + 4 * lane.t) + 4 * lane.g;
#pragma unroll
  for (int tile = 0; tile < 4 * kBlocks; ++tile) {
    std::uint32_t w[4];  // rows 4t ..
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      w[i] = load_shared_4(values + 2 * head_dim * i +
                           2 * channel_in_row<kWhole>(16 * tile, head_dim));
    }
    const FragmentA a = {__byte_perm(w[0], w[2], 0x5410), __byte_perm(w[0], w[2], 0x7632),
                         __byte_perm(w[1], w[3], 0x5410), __byte_perm(w[1], w[3], 0x7632)};
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
      multiply_add(sum.values[tile / 4][tile % 4][c], a, weights.b[0][c][0], weights.b[0][c][1]);
    }
  }
}

// Attends to the rows in `stage`, of which the first `count` exist (1 or more).
template <bool kWhole, int kSteps, int kBlocks, int kColumns>
__device__ __forceinline__ void attend_exact(std::uint32_t stage, int dim, int count, Lane lane,
                                             const Query<kSteps, kColumns>& query,
                                             SoftmaxSum<kBlocks, kColumns>& sum) {
  const int head_dim = kWhole ? 64 * kBlocks : dim;
  if (count < kExactUnitRows) clear_missing_values(stage, head_dim, count, lane);
  FragmentC scores[1][kColumns];
  exact_scores<kWhole>(stage, head_dim, count, lane, query, scores);
  Operand<1, kColumns> weights;
  sum.weigh(scores, weights);
  add_exact_values<kWhole>(stage, head_dim, lane, weights, sum);
}

}  // namespace kvq::cuda
