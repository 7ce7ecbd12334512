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

  // Of keys (value false) or values. A row from `count` on is the last one.
  __device__ __forceinline__ const std::uint16_t* row(const DecodeParams& params, bool value,
                                                      int index) const {
    index = min(index, count - 1);
    if (index < sinks) {
      const std::uint16_t* const rows = value ? params.sinks.value : params.sinks.key;
      return rows + sink_offset + static_cast<std::int64_t>(index) * head_dim;
    }
    index -= sinks;
    const std::uint16_t* rows = (value ? params.tail.value : params.tail.key) + tail_offset;
    if (blocks != nullptr) {
      rows += blocks[index / kPageTokens] * block_stride;
      index %= kPageTokens;
    }
    return rows + static_cast<std::int64_t>(index) * head_dim;
  }
};

// What a lane reads of 16 exact rows. Every lane works out where one row of keys or of values
// starts, and all loads are started before the first is needed: they take longer than all else.
class ExactRowStarts {
 public:
  __device__ __forceinline__ ExactRowStarts(const DecodeParams& params, const ExactRows& rows,
                                            int first, Lane lane)
      : start_(reinterpret_cast<std::uint64_t>(
            rows.row(params, lane.index >= 16, first + lane.index % 16))) {}

  __device__ __forceinline__ const std::uint16_t* key(int row) const { return of_lane(row); }
  __device__ __forceinline__ const std::uint16_t* value(int row) const { return of_lane(16 + row); }

 private:
  __device__ __forceinline__ const std::uint16_t* of_lane(int index) const {
    return reinterpret_cast<const std::uint16_t*>(__shfl_sync(0xffffffffU, start_, index));
  }

  std::uint64_t start_;
};

// Channel `channel` of rows that have head_dim of them: 16 from the end at most, so that what is
// read beyond belongs to the row. kWhole: there is nothing beyond.
template <bool kWhole>
__device__ __forceinline__ int channel_in_row(int channel, int head_dim) {
  return kWhole ? channel : min(channel, head_dim - 16);
}

// Channels from head_dim on are others', of a query that is zero there.
template <bool kWhole, int kSteps>
struct ExactKeys {
  uint2 words[kSteps][2];  // [step][row]

  __device__ __forceinline__ void load(const ExactRowStarts& starts, int head_dim, Lane lane) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const std::uint16_t* const row = starts.key(2 * lane.g + r) + 4 * lane.t;
#pragma unroll
      for (int step = 0; step < kSteps; ++step) {
        uint2& w = words[step][r];
        asm volatile("ld.global.nc.v2.u32 {%0,%1}, [%2];"
                     : "=r"(w.x), "=r"(w.y)
                     : "l"(row + channel_in_row<kWhole>(16 * step, head_dim)));
      }
    }
  }
};

// Of kBlocks blocks of 64 channels from `first_block` on. Channels from head_dim on are others':
// nobody reads what becomes of them.
template <bool kWhole, int kBlocks>
struct ExactValues {
  std::uint32_t words[kBlocks][4][4];  // [block][tile][row]

  __device__ __forceinline__ void load(const ExactRowStarts& starts, int head_dim, int first_block,
                                       Lane lane) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const std::uint16_t* const row = starts.value(4 * lane.t + i) + 2 * lane.g;
#pragma unroll
      for (int block = 0; block < kBlocks; ++block) {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const int channel = 64 * (first_block + block) + 16 * j;
          asm volatile("ld.global.nc.u32 %0, [%1];"
                       : "=r"(words[block][j][i])
                       : "l"(row + channel_in_row<kWhole>(channel, head_dim)));
        }
      }
    }
  }

  template <int kColumns>
  __device__ __forceinline__ void add(const Operand<1, kColumns>& weights, int block,
                                      BlockSum<kColumns>& sum) const {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const std::uint32_t(&w)[4] = words[block][j];
      const FragmentA a = {__byte_perm(w[0], w[2], 0x5410), __byte_perm(w[0], w[2], 0x7632),
                           __byte_perm(w[1], w[3], 0x5410), __byte_perm(w[1], w[3], 0x7632)};
#pragma unroll
      for (int c = 0; c < kColumns; ++c) {
        multiply_add(sum[j][c], a, weights.b[0][c][0], weights.b[0][c][1]);
      }
    }
  }
};

// Scores of rows first .. first + 15, in units of log2; rows that do not exist: -infinity.
template <bool kWhole, int kSteps, int kColumns>
__device__ __forceinline__ void exact_scores(const ExactKeys<kWhole, kSteps>& keys,
                                             const ExactRows& rows, int first, Lane lane,
                                             const Query<kSteps, kColumns>& query,
                                             FragmentC (&scores)[1][kColumns]) {
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
    FragmentA a;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const uint2 words = keys.words[step][r];
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
      scores[0][c][e] =
          exists ? scores[0][c][e] * query.factor : -std::numeric_limits<float>::infinity();
    }
  }
}

// Attends to exact rows first .. first + 15.
template <bool kWhole, int kSteps, int kBlocks, int kColumns>
__device__ __forceinline__ void attend_exact(const DecodeParams& params, const ExactRows& rows,
                                             int first, Lane lane,
                                             const Query<kSteps, kColumns>& query,
                                             SoftmaxSum<kBlocks, kColumns>& sum) {
  if (rows.count == 0) return;
  constexpr int kTogether = kBlocks <= 2 ? kBlocks : 1;  // blocks that registers have room for
  const ExactRowStarts starts(params, rows, first, lane);
  ExactKeys<kWhole, kSteps> keys;
  ExactValues<kWhole, kTogether> values;
  keys.load(starts, rows.head_dim, lane);
  values.load(starts, rows.head_dim, 0, lane);
  FragmentC scores[1][kColumns] = {};
  exact_scores(keys, rows, first, lane, query, scores);
  Operand<1, kColumns> weights;
  sum.weigh(scores, weights);
#pragma unroll
  for (int block = 0; block < kBlocks; ++block) {
    if (block >= kTogether) values.load(starts, rows.head_dim, block, lane);
    values.add(weights, block < kTogether ? block : 0, sum.values[block]);
  }
}

}  // namespace kvq::cuda
