// The part of the warpgroups that multiply.
#pragma once

#include "kvq/attention/cuda/device/prefill_memory.cuh"
#include "kvq/attention/cuda/device/prefill_query.cuh"
#include "kvq/attention/cuda/device/prefill_softmax.cuh"

namespace kvq::cuda {

// A multiplying warpgroup.
template <int kBlocks>
class PrefillConsumer {
 public:
  // group: number of this warpgroup; its rows are 64 group .. 64 group + 63 of the tile.
  __device__ PrefillConsumer(const PrefillParams& params, const PrefillTile& tile,
                             const PrefillMemory& memory, int group)
      : params_(params),
        tile_(tile),
        memory_(memory),
        keys_(memory.key_barriers, params.slots),
        values_(memory.value_barriers, params.slots),
        lane_(this_lane()),
        row_(64 * group + static_cast<int>(threadIdx.x / 32 % 4) * 16 + lane_.g) {}

  __device__ __forceinline__ void run() {
    query_.shared = memory_.query + row_ / 64 * kBlocks * kTileBlockBytes;
    sums_.clear();
    if (tile_.pages > 0) {
      load_query(params_, tile_, row_, true, lane_, query_);
      attend(kPageTokens * tile_.pages, set_visible_pages());
      sums_.multiply_values(params_.value.unit);
      if (params_.value_rotation > 1) rotate_rows(sums_.values, params_.value_rotation, lane_);
    }
    load_query(params_, tile_, row_, false, lane_, query_);
    attend(tile_.exact_rows, set_visible_rows());
    write();
  }

 private:
  // What each row sees of the pages, of the exact rows; returns what all rows of the tile see.
  __device__ __forceinline__ Visible set_visible_pages() {
    const auto seen = [&](int row) {
      return tile_.boundary(params_, tile_.position(params_, row)) - params_.sink_tokens;
    };
#pragma unroll
    for (int h = 0; h < 2; ++h) visible_[h] = {seen(row_ + 8 * h), 0, -1};
    return {0, 0, seen(0) - 1};
  }
  __device__ __forceinline__ Visible set_visible_rows() {
    const int offset = tile_.sinks - tile_.exact_first;  // of a number from a position in the tail
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int position = tile_.position(params_, row_ + 8 * h);
      visible_[h] = {min(tile_.sinks, position + 1), offset + tile_.boundary(params_, position),
                     offset + position};
    }
    const int end = tile_.boundary(params_, tile_.position(params_, 64 * kMaxGroups - 1));
    return {0, offset + end, offset + tile_.position(params_, 0)};
  }

  // All units of one kind, `count` positions. A unit is masked unless it lies in `common`. The
  // scores of a unit and the values of the last one are multiplied together.
  __device__ __forceinline__ void attend(int count, const Visible& common) {
    start_scores();
    wait_products<0>();
    take_scores(0, common);
    take_weights();
    for (int first = kPageTokens; first < count; first += kPageTokens) {
      start_scores();
      start_values();
      wait_products<1>();
      take_scores(first, common);
      finish_values();
      take_weights();
    }
    start_values();
    finish_values();
  }

  __device__ __forceinline__ void start_scores() {
    keys_.wait_filled();
    const BlockAddress slot = block_address(memory_.keys + keys_.index() * memory_.slot_bytes);
    begin_products();
#pragma unroll
    for (int step = 0; step < 4 * kBlocks; ++step) {
      query_.multiply_step(scores_, slot, step);
    }
    commit_products();
  }
  __device__ __forceinline__ void start_values() {
    values_.wait_filled();
    const BlockAddress slot = block_address(memory_.values + values_.index() * memory_.slot_bytes);
    pin_values();
    begin_products();
#pragma unroll
    for (int step = 0; step < 4; ++step) {
#pragma unroll
      for (int block = 0; block < kBlocks; ++block) {
        multiply(sums_.values[block], weights_[step], advance(slot, block, step), true);
      }
    }
    commit_products();
  }
  // Of the unit whose positions are numbered from `first`.
  __device__ __forceinline__ void take_scores(int first, const Visible& common) {
    pin(scores_);
    release(keys_);
    if (first < common.first || first + kPageTokens - 1 > common.last) {
      mask_scores(visible_, first, lane_, scores_);
    }
    sums_.weigh(query_.factor, scores_);
    pin(scores_);  // while values are multiplied, not behind them
  }
  __device__ __forceinline__ void take_weights() {
    sums_.rescale_values();
#pragma unroll
    for (int i = 0; i < 32; i += 2) weights_[i / 8][i / 2 % 4] = pack(scores_[i], scores_[i + 1]);
  }
  __device__ __forceinline__ void finish_values() {
    wait_products<0>();
    pin_values();
    release(values_);
  }
  __device__ __forceinline__ void pin_values() {
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) pin(sums_.values[block]);
  }
  __device__ __forceinline__ void release(Ring& ring) const {
    __syncwarp();
    if (lane_.index == 0) ring.released().arrive();
    ring.advance();
  }

  __device__ __forceinline__ void write() {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float total = sums_.weight[h];
#pragma unroll
      for (int distance = 1; distance <= 2; distance *= 2) {
        total += __shfl_xor_sync(0xffffffffU, total, distance);
      }
      const float factor = 1.0F / total;
      const int row = row_ + 8 * h;
      if (tile_.first_row + row >= tile_.chunk_rows) continue;
      const std::int64_t index = query_index(params_, tile_, row) + 2 * lane_.t;
#pragma unroll
      for (int block = 0; block < kBlocks; ++block) {
#pragma unroll
        for (int n = 0; n < 8; ++n) {
          const int channel = 64 * block + 8 * n;
          if (channel >= params_.head_dim) continue;
          store_pair(index + channel, sums_.values[block][4 * n + 2 * h] * factor,
                     sums_.values[block][4 * n + 2 * h + 1] * factor);
        }
      }
    }
  }
  __device__ __forceinline__ void store_pair(std::int64_t index, float low, float high) const {
    if (params_.output_type == NumberType::kFloat32) {
      *reinterpret_cast<float2*>(static_cast<float*>(params_.output) + index) = {low, high};
      return;
    }
    const bool is_half = params_.output_type == NumberType::kFloat16;
    const __nv_bfloat162 brain = __floats2bfloat162_rn(low, high);
    const std::uint32_t pair =
        is_half ? pack(low, high) : *reinterpret_cast<const std::uint32_t*>(&brain);
    *reinterpret_cast<std::uint32_t*>(static_cast<std::uint16_t*>(params_.output) + index) = pair;
  }

  const PrefillParams& params_;
  const PrefillTile& tile_;
  const PrefillMemory& memory_;
  Ring keys_;
  Ring values_;
  Lane lane_;
  int row_;  // of the tile, the lane's first
  QueryRows<kBlocks> query_;
  Visible visible_[2];
  RowSums<kBlocks> sums_;
  BlockC scores_;
  std::uint32_t weights_[4][4];
};

}  // namespace kvq::cuda
