// Sixteen exact rows: the keys and values are fp16 in memory, read straight into fragments. Sums
// are in units of 1, keys and values unrotated.
//
//   K: lane 4g + t reads channels 4t .. 4t+3 of rows 2g, 2g+1     (8 bytes a row and step)
//   V: lane 4g + t reads channels 2g, 2g+1 of rows 4t .. 4t+3     (4 bytes a row and tile)
#pragma once

#include <limits>

#include "kvq/attention/cuda/device/query.cuh"
#include "kvq/attention/cuda/device/softmax.cuh"

namespace kvq::cuda {

// The row of the tables that a sequence reads.
__device__ __forceinline__ int table_of(const DecodeParams& params, int sequence) {
  return params.tables == nullptr ? sequence : params.tables[sequence];
}

// The exact rows of one kv head of one sequence: sinks, then tail.
struct ExactRows {
  std::int64_t sink_offset;  // elements
  std::int64_t tail_offset;
  const std::int32_t* blocks;  // of the tail; null: it is contiguous
  std::int64_t block_stride;
  int sinks;
  int count;
  int head_dim;

  __device__ ExactRows(const DecodeParams& params, int sequence, int kv_head)
      : sink_offset(kv_head * params.sinks.head_stride),
        tail_offset(kv_head * params.tail.head_stride),
        blocks(nullptr),
        block_stride(params.tail.sequence_stride),
        sinks(params.lengths[sequence].sinks),
        count(sinks + params.lengths[sequence].tail),
        head_dim(params.head_dim) {
    if (params.row_blocks == nullptr) {
      sink_offset += sequence * params.sinks.sequence_stride;
      tail_offset += sequence * params.tail.sequence_stride;
      return;
    }
    blocks = params.row_blocks +
             static_cast<std::int64_t>(table_of(params, sequence)) * params.row_blocks_stride;
    sink_offset += blocks[0] * params.sinks.sequence_stride;
    blocks += kRowBlocksHeader + params.lengths[sequence].pages - blocks[1];
  }

  // A row from `count` on is the last one.
  __device__ const std::uint16_t* row(const std::uint16_t* sink_rows,
                                      const std::uint16_t* tail_rows, int index) const {
    index = min(index, count - 1);
    if (index < sinks) return sink_rows + sink_offset + static_cast<std::int64_t>(index) * head_dim;
    index -= sinks;
    tail_rows += tail_offset;
    if (blocks != nullptr) {
      tail_rows += blocks[index / kPageTokens] * block_stride;
      index %= kPageTokens;
    }
    return tail_rows + static_cast<std::int64_t>(index) * head_dim;
  }
};

// Scores of rows first .. first + 15, in units of log2; rows that do not exist: -infinity.
template <int kSteps, int kColumns>
__device__ __forceinline__ void exact_scores(const DecodeParams& params, const ExactRows& rows,
                                             int first, Lane lane,
                                             const Query<kSteps, kColumns>& query,
                                             FragmentC (&scores)[1][kColumns]) {
  const std::uint16_t* key[2];
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    key[r] =
        rows.row(params.sinks.key, params.tail.key, first + 2 * lane.g + r) + 4 * lane.t;
  }
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
    if (16 * step >= rows.head_dim) break;
    FragmentA a;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const uint2 words = *reinterpret_cast<const uint2*>(key[r] + 16 * step);
      a[r] = __byte_perm(words.x, words.y, 0x5410);
      a[r + 2] = __byte_perm(words.x, words.y, 0x7632);
    }
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
      multiply_add(scores[0][c], a, query.operand.b[step][c][0], query.operand.b[step][c][1]);
    }
  }
#pragma unroll
  for (int c = 0; c < kColumns; ++c) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const bool exists = first + 2 * lane.g + (e >> 1) < rows.count;
      scores[0][c][e] = exists ? scores[0][c][e] * query.factor
                               : -std::numeric_limits<float>::infinity();
    }
  }
}

template <int kBlocks, int kColumns>
__device__ __forceinline__ void add_exact_values(const DecodeParams& params, const ExactRows& rows,
                                                 int first, Lane lane,
                                                 const Operand<1, kColumns>& weights,
                                                 BlockSum<kColumns> (&values)[kBlocks]) {
  const std::uint16_t* value[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    value[i] = rows.row(params.sinks.value, params.tail.value, first + 4 * lane.t + i) + 2 * lane.g;
  }
#pragma unroll
  for (int tile = 0; tile < 4 * kBlocks; ++tile) {
    if (16 * tile >= rows.head_dim) break;
    std::uint32_t words[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      words[i] = *reinterpret_cast<const std::uint32_t*>(value[i] + 16 * tile);
    }
    const FragmentA a = {
        __byte_perm(words[0], words[2], 0x5410), __byte_perm(words[0], words[2], 0x7632),
        __byte_perm(words[1], words[3], 0x5410), __byte_perm(words[1], words[3], 0x7632)};
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
      multiply_add(values[tile / 4][tile % 4][c], a, weights.b[0][c][0], weights.b[0][c][1]);
    }
  }
}

// Attends to exact rows first .. first + 15.
template <int kSteps, int kBlocks, int kColumns>
__device__ __forceinline__ void attend_exact(const DecodeParams& params, const ExactRows& rows,
                                             int first, Lane lane,
                                             const Query<kSteps, kColumns>& query,
                                             SoftmaxSum<kBlocks, kColumns>& sum) {
  if (rows.count == 0) return;
  FragmentC scores[1][kColumns] = {};
  exact_scores(params, rows, first, lane, query, scores);
  Operand<1, kColumns> weights;
  sum.weigh(scores, weights);
  add_exact_values(params, rows, first, lane, weights, sum.values);
}

}  // namespace kvq::cuda
