// The decode kernel: one block a multiprocessor, each of its warps for itself.
//
// A warp has one page in shared memory. While it waits for the next one, the other warps compute:
// twelve single buffers keep the memory busier than deeper rings of fewer warps, whose bytes in
// flight are shared out unfairly. For every page
//
//   scores S [64 tokens x 8 heads] = K q     matrix instructions on packed codes
//   weights P = 2^(S - reference)            in the registers of S, transposed into operands
//   sums O [channels x 8 heads] += V P       matrix instructions on packed codes
//
// Cost, k4v2 with 128 channels: about 640 instructions of a warp for a page of 6,656 bytes, 40 % of
// what a multiprocessor can issue while its share of the memory's bandwidth delivers the page.
//
// Each warp has a region of shared memory: its page, in the end its partial result.
#pragma once

#include "kvq/attention/cuda/device/exact_rows.cuh"
#include "kvq/attention/cuda/device/page_copy.cuh"
#include "kvq/attention/cuda/device/page_kernels.cuh"
#include "kvq/attention/cuda/device/partial_results.cuh"
#include "kvq/attention/cuda/device/work.cuh"

namespace kvq::cuda {

template <class Page, int kBlocks, int kColumns>
class DecodeWarp {
 public:
  static constexpr int kSteps = 4 * kBlocks;

  __device__ DecodeWarp(const DecodeParams& params, std::byte* shared)
      : params_(params),
        shared_(shared),
        lane_(this_lane()),
        index_(static_cast<int>(threadIdx.x / 32)),
        warps_per_block_(static_cast<int>(blockDim.x / 32)),
        warp_(static_cast<int>(blockIdx.x) * warps_per_block_ + index_),
        warps_(static_cast<int>(gridDim.x) * warps_per_block_),
        buffer_(static_cast<std::uint32_t>(__cvta_generic_to_shared(shared)) + kSharedHeader +
                index_ * params.region_bytes),
        copy_(static_cast<std::uint32_t>(__cvta_generic_to_shared(shared)) + 8 * index_, lane_),
        work_(params, warp_, warps_, warps_per_block_, lane_,
              reinterpret_cast<Cut*>(shared + kSharedCuts) + index_) {}

  __device__ __forceinline__ void run() {
    sum_.clear();
    if (work_.idle()) {
      exact_ = true;
      if (lane_.index == 0) closings()[index_] = {{warp_, warp_, false}, 0, 0, 0};
    } else {
      attend();
    }
    finish();
  }

 private:
  __device__ __forceinline__ void attend() {
    Unit unit = work_.first();
    Start how = Start::kItem;
    while (true) {
      if (how != Start::kNextUnit) {
        if (how == Start::kPages) {
          enter_pages();
        } else {
          exact_ = unit.kind == Unit::kExact;
        }
        prepare_item(unit, how);
      }
      if (unit.kind == Unit::kNone) break;
      // The next unit is settled, and its place looked up, before this one is done with: the copy
      // that then starts must not wait for either.
      const bool claims = !work_.next_is_fixed();
      const bool item_ends = !claims && work_.next_begins_item();
      const int claim = claims ? work_.start_claim() : 0;
      Unit next{Unit::kNone, 0};
      const std::byte* place = nullptr;
      if (!claims && !item_ends) {
        next = work_.advance();
        place = look_up(next);
      }
      const auto settle = [&] {
        if (!claims) return;
        next = work_.finish_claim(claim);
        place = look_up(next);
      };
      if (unit.kind == Unit::kPage) {
        attend_page(settle);
      } else {
        const ExactRows rows(params_, work_.sequence(), work_.head() / params_.head_tiles);
        attend_exact(params_, rows, kExactUnitRows * unit.index, lane_, query_, sum_);
        settle();
      }
      if (item_ends) {
        end_passing();
        next = work_.advance_to_next_item();
        how = Start::kItem;
      } else {
        start(next, place);
        how = exact_ && next.kind == Unit::kPage ? Start::kPages : Start::kNextUnit;
      }
      unit = next;
    }
  }

  // What is new with a unit.
  enum class Start { kNextUnit, kPages, kItem };

  // Where a unit's page lies.
  __device__ __forceinline__ const std::byte* look_up(const Unit& unit) const {
    const std::byte* place = nullptr;
    if (unit.kind == Unit::kPage) {
      const std::int32_t* const entry =
          params_.page_table + static_cast<std::int64_t>(work_.sequence()) * params_.table_stride +
          unit.index;
      std::int32_t page;
      asm volatile("ld.global.nc.b32 %0, [%1];" : "=r"(page) : "l"(entry));  // here, not later
      place = head_pages_ + page * params_.page_stride;
    }
    return place;
  }
  __device__ __forceinline__ void start(const Unit& unit, const std::byte* place) {
    if (unit.kind == Unit::kPage) copy_.start(buffer_, place, params_.page_bytes);
  }

  // settle() is called between scores and values.
  template <class Settle>
  __device__ __forceinline__ void attend_page(const Settle& settle) {
    copy_.wait();
    BlockSum<kColumns> scores = {};
    Page::scores(params_, buffer_, lane_, query_, terms_, scores);
    Operand<4, kColumns> weights;
    sum_.weigh(scores, weights);
    settle();
    Page::add_values(params_, buffer_, lane_, weights, sum_.values);
    __syncwarp();
  }

  __device__ __forceinline__ Closing* closings() const {
    return reinterpret_cast<Closing*>(shared_ + kSharedClosings);
  }

  // What does not depend on pages, while the first one is on its way. The queries' loads go first:
  // behind a page for every warp they would take three times as long.
  __device__ __forceinline__ void prepare_item(const Unit& unit, Start how) {
    const int kv_head = work_.head() / params_.head_tiles;
    const int first = (work_.head() - kv_head * params_.head_tiles) * kHeadTile * kColumns;
    const std::int64_t first_head =
        (static_cast<std::int64_t>(work_.sequence()) * params_.kv_heads + kv_head) * params_.heads +
        first;
    const int heads = min(kHeadTile * kColumns, params_.heads - first);
    head_pages_ = params_.pages + kv_head * params_.head_stride;
    RawQuery<kSteps, kColumns> raw;
    load_raw_query(params_, first_head, heads, lane_, raw);
    if (how == Start::kItem) start(unit, look_up(unit));
    const Closing closing{work_.contributors(), work_.item(), first_head, heads};
    if (lane_.index == 0) closings()[index_] = closing;
    __syncwarp();
    prepare_query(params_, raw, heads, exact_ ? 1 : params_.key_rotation, lane_, query_);
    Page::prepare(params_, query_, terms_);
  }

  // From exact rows to pages: other units, and sums in the values' rotated space.
  __device__ __forceinline__ void enter_pages() {
    exact_ = false;
    rotate();
    Page::from_plain(params_, sum_.values);
  }
  __device__ __forceinline__ void leave_units() {
    if (exact_) {
      rotate();
    } else {
      Page::to_plain(params_, sum_.values);
    }
  }
  // Through memory, seldom: one small body instead of an unrolled one in every place.
  __device__ __forceinline__ void rotate() {
    if (params_.value_rotation == 1) return;
    SoftmaxSum<kBlocks, kColumns> copy = sum_;
    rotate_values(copy.values, params_.value_rotation, lane_);
    sum_ = copy;
  }

  // The warp ended an item and goes on to the next.
  __device__ __forceinline__ void end_passing() {
    leave_units();
    SoftmaxSum<kBlocks, kColumns> copy = sum_;
    const Closing& closing = closings()[index_];
    if (closing.contributors.count(warps_per_block_) == 1) {
      WarpResult<kBlocks, kColumns>::write(params_, closing, lane_, copy);
    } else {
      const std::int64_t slot = warps_ + warp_;
      WarpResult<kBlocks, kColumns>::store(closing, params_.partials + slot * params_.partial_floats,
                                           lane_, copy);
      passed_ = true;  // at most once: items between the first and the last are whole
      if (lane_.index == 0) closings()[16 + index_] = closing;
    }
    __syncwarp();
    sum_.clear();
  }

  __device__ __forceinline__ void finish() {
    leave_units();
    BlockResult<kBlocks, kColumns>(params_, shared_, lane_).finish(passed_, sum_);
  }

  const DecodeParams& params_;
  std::byte* shared_;
  Lane lane_;
  int index_;  // of the warp in its block
  int warps_per_block_;
  int warp_;
  int warps_;
  std::uint32_t buffer_;
  PageCopy copy_;
  Work work_;
  const std::byte* head_pages_;  // pages of the item's kv head
  bool passed_ = false;
  bool exact_;  // sums are of exact rows: units of 1, not rotated
  Query<kSteps, kColumns> query_;
  typename Page::template QueryTerms<kSteps, kColumns> terms_;
  SoftmaxSum<kBlocks, kColumns> sum_;
};

template <class Page, int kBlocks, int kColumns, int kMaxWarps>
__global__ void __launch_bounds__(32 * kMaxWarps, 1)
    decode_kernel(const __grid_constant__ DecodeParams params) {
  extern __shared__ __align__(128) std::byte shared[];
  DecodeWarp<Page, kBlocks, kColumns>(params, shared).run();
}

}  // namespace kvq::cuda
