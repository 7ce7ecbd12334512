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
//
// The kernel before may still write queries, pages and counters when this one starts, not lengths
// and tables: a warp finds its units before it waits.
#pragma once

#include "kvq/attention/cuda/device/exact_rows.cuh"
#include "kvq/attention/cuda/device/page_copy.cuh"
#include "kvq/attention/cuda/device/page_kernels.cuh"
#include "kvq/attention/cuda/device/partial_results.cuh"
#include "kvq/attention/cuda/device/work.cuh"
#include "kvq/base/cuda/overlapped_launch.cuh"

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
        copy_(shared_address() + 16 * index_,
              shared_address() + kSharedHeader + index_ * params.region_bytes, params.stages,
              params.page_bytes, lane_) {}

  __device__ __forceinline__ void run() {
    allow_kernel_behind();
    sum_.clear();
    Work work(params_, warp_, lane_, reinterpret_cast<Cut*>(shared_ + kSharedCuts) + index_);
    if (work.idle()) {
      exact_ = true;
      if (lane_.index == 0) closings()[index_] = {{warp_, warp_, false}, 0, 0, 0};
    } else {
      attend(work);
    }
    leave_units();
    BlockResult<kBlocks, kColumns>(params_, shared_, lane_).finish(passed_, sum_);
  }

 private:
  // What is new with a unit.
  enum class Start { kNextUnit, kPages, kItem };

  // A unit that is settled, and where its page lies.
  struct Settled {
    Unit unit;
    const std::byte* place;
  };

  __device__ __forceinline__ void attend(Work& work) {
    Unit unit;
    Unit next{Unit::kNone, 0};  // with two stages
    Start how = Start::kItem;
    while (true) {
      if (how != Start::kNextUnit) {
        if (how == Start::kItem) {
          start_item(work, unit, next);
        } else {
          enter_pages();
        }
        if (!exact_) rotate_query(query_, params_.key_rotation, lane_);
        Page::prepare(params_, operands(), lane_, query_, terms_);
      }
      if (unit.kind == Unit::kNone) {
        if (!work.another_item()) break;
        end_passing();
        work.start_next_item();
        how = Start::kItem;
        continue;
      }
      // The unit to come is settled, and its place looked up, before this one is done with: the
      // copy that then starts must not wait for either.
      Settled ahead{};
      int claim = 0;
      const bool known = work.request(ahead.unit, claim);
      if (known) ahead.place = look_up(work, ahead.unit);
      const auto settle = [&] {
        if (known) return;
        ahead.unit = work.receive(claim);
        ahead.place = look_up(work, ahead.unit);
      };
      if (unit.kind == Unit::kPage) {
        attend_page(settle);
      } else {
        const ExactRows rows(params_, work.sequence(), divide(work.head(), params_.head_tiles));
        attend_exact<Page::kWholeBlocks>(params_, rows, kExactUnitRows * unit.index, lane_, query_,
                                         sum_);
        settle();
      }
      start(ahead);
      unit = params_.stages == 2 ? next : ahead.unit;
      next = ahead.unit;
      how = exact_ && unit.kind == Unit::kPage ? Start::kPages : Start::kNextUnit;
    }
  }

  __device__ __forceinline__ Settled settle_now(Work& work) {
    Settled settled{};
    int claim = 0;
    if (!work.request(settled.unit, claim)) settled.unit = work.receive(claim);
    settled.place = look_up(work, settled.unit);
    return settled;
  }

  __device__ __forceinline__ Settled settle_first(Work& work) {
    if (work.claims_next()) wait_for_kernel_before();
    return settle_now(work);
  }

  // Where a unit's page lies.
  __device__ __forceinline__ const std::byte* look_up(const Work& work, const Unit& unit) const {
    const std::byte* place = nullptr;
    if (unit.kind == Unit::kPage) {
      const std::int32_t* const entry =
          params_.page_table +
          static_cast<std::int64_t>(table_of(params_, work.sequence())) * params_.table_stride +
          unit.index;
      std::int32_t page;
      asm volatile("ld.global.nc.b32 %0, [%1];" : "=r"(page) : "l"(entry));  // here, not later
      place = head_pages_ + page * params_.page_stride;
    }
    return place;
  }
  __device__ __forceinline__ void start(const Settled& settled) {
    if (settled.unit.kind == Unit::kPage) copy_.start(settled.place);
  }

  // settle() is called between scores and values.
  template <class Settle>
  __device__ __forceinline__ void attend_page(const Settle& settle) {
    Page::attend(params_, copy_.wait(), operands(), lane_, query_, terms_, sum_, settle);
    __syncwarp();
  }

  __device__ __forceinline__ std::uint32_t shared_address() const {
    return static_cast<std::uint32_t>(__cvta_generic_to_shared(shared_));
  }
  // Shared address of the warp's room for operands.
  __device__ __forceinline__ std::uint32_t operands() const {
    return shared_address() + kSharedHeader + index_ * params_.region_bytes +
           params_.stages * params_.page_bytes;
  }
  __device__ __forceinline__ Closing* closings() const {
    return reinterpret_cast<Closing*>(shared_ + kSharedClosings);
  }

  // The queries' loads go first: behind a page for every warp they would take three times as long.
  // What does not depend on pages is prepared while they are on their way.
  __device__ __forceinline__ void start_item(Work& work, Unit& unit, Unit& next) {
    const int kv_head = divide(work.head(), params_.head_tiles);
    const int first = (work.head() - kv_head * params_.head_tiles) * kHeadTile * kColumns;
    const std::int64_t first_head =
        (static_cast<std::int64_t>(work.sequence()) * params_.kv_heads + kv_head) * params_.heads +
        first;
    const int heads = min(kHeadTile * kColumns, params_.heads - first);
    head_pages_ = params_.pages + kv_head * params_.head_stride;
    Settled settled[2] = {};
    settled[0] = settle_first(work);
    if (params_.stages == 2) settled[1] = settle_first(work);
    wait_for_kernel_before();
    RawQuery<kSteps, kColumns> raw;
    load_raw_query(params_, first_head, heads, lane_, raw);
    start(settled[0]);
    start(settled[1]);
    unit = settled[0].unit;
    next = settled[1].unit;
    exact_ = unit.kind == Unit::kExact;
    const Closing closing{work.contributors(), work.item(), first_head, heads};
    if (lane_.index == 0) closings()[index_] = closing;
    __syncwarp();
    prepare_query(params_, raw, query_);
  }

  // From exact rows to pages: other units, and sums in the values' rotated space; the query's
  // rotation follows.
  __device__ __forceinline__ void enter_pages() {
    exact_ = false;
    rotate();
    values_from_plain(Page::value_bits(params_), sum_);
  }
  __device__ __forceinline__ void leave_units() {
    if (exact_) {
      rotate();
    } else {
      values_to_plain(Page::value_bits(params_), sum_);
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
      const std::int64_t slot = params_.warps.number + warp_;
      WarpResult<kBlocks, kColumns>::store(
          closing, params_.partials + slot * params_.partial_floats, lane_, copy);
      passed_ = true;  // at most once: items between the first and the last are whole
      if (lane_.index == 0) closings()[16 + index_] = closing;
    }
    __syncwarp();
    sum_.clear();
  }

  const DecodeParams& params_;
  std::byte* shared_;
  Lane lane_;
  int index_;  // of the warp in its block
  int warps_per_block_;
  int warp_;
  PageCopy copy_;
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
