// The decode kernel: one block a multiprocessor, each of its warps for itself.
//
// A warp has one or two pages in shared memory. While it waits for the next one, the other warps
// compute: twelve small buffers keep the memory busier than deeper rings of fewer warps, whose
// bytes in flight are shared out unfairly. Exact rows come the same way, before the pages. For
// every page
//
//   scores S [64 tokens x 8 heads] = K q     matrix instructions on packed codes
//   weights P = 2^(S - reference)            in the registers of S, transposed into operands
//   sums O [channels x 8 heads] += V P       matrix instructions on packed codes
//
// Cost, k4v2 with 128 channels: about 700 instructions of a warp for a page of 6,656 bytes, 45 % of
// what a multiprocessor can issue while its share of the memory's bandwidth delivers the page. The
// loop has no branches but the wait and the start of a copy: a warp is one of three of a scheduler,
// and what it waits for a branch is seldom filled by the others.
//
// Each warp has a region of shared memory: its stages, in the end its partial result.
//
// The kernel before may still write queries, exact rows and counters when this one starts, not
// lengths and tables, nor pages if the caller says so: a warp finds its units, and starts the first
// pages, before it waits.
#pragma once

#include "kvq/attention/cuda/device/exact_rows.cuh"
#include "kvq/attention/cuda/device/page_copy.cuh"
#include "kvq/attention/cuda/device/page_kernels.cuh"
#include "kvq/attention/cuda/device/partial_results.cuh"
#include "kvq/attention/cuda/device/work.cuh"
#include "kvq/base/cuda/overlapped_launch.cuh"

namespace kvq::cuda {

// Of a warp's share.
inline constexpr int kFewPages = 12;

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
              params.stage_bytes, lane_) {}

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
  __device__ __forceinline__ void attend(Work& work) {
    while (true) {
      start_item(work);
      attend_exact_units(work);
      attend_pages(work);
      if (!work.another_item()) return;
      end_passing();
      work.start_next_item();
    }
  }

  __device__ __forceinline__ void start_exact(const Work& work, int unit) {
    const ExactUnit rows =
        find_exact_unit(params_, work.sequence(), divide(work.head(), params_.head_tiles), unit);
    copy_.start_two(reinterpret_cast<const std::byte*>(rows.key),
                    reinterpret_cast<const std::byte*>(rows.value),
                    2 * params_.head_dim * rows.count, 2 * params_.head_dim * kExactUnitRows);
    ++in_flight_;
  }
  __device__ __forceinline__ void attend_exact_units(Work& work) {
    const auto [begin, end, page, page_end] = work.share();
    if (in_flight_ == 0 || begin == end) return;
    const SequenceLength length = params_.lengths[work.sequence()];
#pragma unroll 1
    for (int unit = begin; unit < end; ++unit) {
      attend_exact<Page::kWholeBlocks>(copy_.wait(), params_.head_dim, exact_rows_of(length, unit),
                                       lane_, query_, sum_);
      copy_.order_writes();
      __syncwarp();
      --in_flight_;
      if (unit + params_.stages < end) {
        start_exact(work, unit + params_.stages);
      } else {
        fill(work);
      }
    }
  }

  // A page to start, once it is known which.
  struct NextPage {
    int page;
    bool claims;
    int claim;
  };
  __device__ __forceinline__ NextPage ask(const Work& work) {
    NextPage next{kNoPage, false, 0};
    const bool shared = page_ < page_end_;
    if (shared) next.page = page_;
    page_ += shared ? 1 : 0;
    next.claims = !shared && work.may_claim();
    next.claim = work.claim(next.claims);
    return next;
  }
  // The number of the page, to be waited for later.
  __device__ __forceinline__ std::int32_t look_up(Work& work, NextPage& next) const {
    next.page = work.claimed_page(next.claims, next.claim, next.page);
    std::int32_t number = 0;
    asm volatile(
        "{\n.reg .pred p;\n"
        "setp.ge.s32 p, %2, 0;\n"
        "@p ld.global.nc.b32 %0, [%1];\n}"
        : "+r"(number)
        : "l"(table_ + next.page), "r"(next.page));
    return number;
  }
  __device__ __forceinline__ void start_page(const NextPage& next, std::int32_t number) {
    const bool starts = next.page != kNoPage;
    copy_.start(starts, head_pages_ + number * params_.page_stride, params_.page_bytes);
    in_flight_ += starts ? 1 : 0;
  }
  __device__ __forceinline__ void fill(Work& work) {
#pragma unroll 1
    while (in_flight_ < params_.stages) {
      NextPage next = ask(work);
      start_page(next, look_up(work, next));
      if (next.page == kNoPage) return;
    }
  }

  // The page to come is settled, and its number looked up, while this one is attended to: the copy
  // that then starts must not wait for either.
  __device__ __forceinline__ void attend_pages(Work& work) {
    if (in_flight_ == 0) return;
    if (exact_) enter_pages();
    rotate_query(query_, params_.key_rotation, lane_);
    Page::prepare(params_, operands(), lane_, query_, terms_);
#pragma unroll 1
    do {
      NextPage next = ask(work);
      std::int32_t number = 0;
      Page::attend(params_, copy_.wait(), operands(), lane_, query_, terms_, sum_,
                   [&] { number = look_up(work, next); });
      __syncwarp();
      --in_flight_;
      start_page(next, number);
    } while (in_flight_ > 0);
  }

  __device__ __forceinline__ std::uint32_t shared_address() const {
    return static_cast<std::uint32_t>(__cvta_generic_to_shared(shared_));
  }
  // Shared address of the warp's room for operands.
  __device__ __forceinline__ std::uint32_t operands() const {
    return shared_address() + kSharedHeader + index_ * params_.region_bytes +
           params_.stages * params_.stage_bytes;
  }
  __device__ __forceinline__ Closing* closings() const {
    return reinterpret_cast<Closing*>(shared_ + kSharedClosings);
  }

  // The first pages that are settled start before the kernel before has ended; the queries cannot,
  // and take three times as long behind two pages for every warp. That delays a warp of few pages
  // by more than the second one gains. What does not depend on pages is prepared while they are on
  // their way.
  __device__ __forceinline__ void start_item(Work& work) {
    const int kv_head = divide(work.head(), params_.head_tiles);
    const int first = (work.head() - kv_head * params_.head_tiles) * kHeadTile * kColumns;
    const std::int64_t first_head =
        (static_cast<std::int64_t>(work.sequence()) * params_.kv_heads + kv_head) * params_.heads +
        first;
    const int heads = min(kHeadTile * kColumns, params_.heads - first);
    head_pages_ = params_.pages + kv_head * params_.head_stride;
    table_ = params_.page_table +
             static_cast<std::int64_t>(table_of(params_, work.sequence())) * params_.table_stride;
    const Share& share = work.share();
    page_ = share.page;
    page_end_ = share.page_end;
    exact_ = share.exact < share.exact_end;
    in_flight_ = 0;
    NextPage pages[2] = {{kNoPage, false, 0}, {kNoPage, false, 0}};
    std::int32_t numbers[2] = {};
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      if (exact_ || i == params_.stages) break;
      if (page_ == page_end_) wait_for_kernel_before();  // its counters
      pages[i] = ask(work);
      numbers[i] = look_up(work, pages[i]);
    }
    const int early = !params_.pages_settled ? 0 : share.page_end - share.page < kFewPages ? 1 : 2;
    if (early > 0) start_page(pages[0], numbers[0]);
    if (early > 1) start_page(pages[1], numbers[1]);
    wait_for_kernel_before();
    RawQuery<kSteps, kColumns> raw;
    load_raw_query(params_, first_head, heads, lane_, raw);
    if (early < 1) start_page(pages[0], numbers[0]);
    if (early < 2) start_page(pages[1], numbers[1]);
    if (exact_) start_first_rows(work);
    const Closing closing{work.contributors(), work.item(), first_head, heads};
    if (lane_.index == 0) closings()[index_] = closing;
    __syncwarp();
    prepare_query(params_, raw, query_);
  }
  // A stage that they leave free stays so: pages follow when rows are done with. A sequence without
  // tokens has a unit without rows.
  __device__ __forceinline__ void start_first_rows(const Work& work) {
    const Share& share = work.share();
    const int end = min(share.exact_end, share.exact + params_.stages);
    const SequenceLength length = params_.lengths[work.sequence()];
    if (length.sinks + length.tail == 0) return;
#pragma unroll 1
    for (int unit = share.exact; unit < end; ++unit) start_exact(work, unit);
  }

  // From exact rows to pages: other units, and sums in the values' rotated space.
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
  const std::int32_t* table_;    // numbers of the item's pages
  int page_;                     // of the warp's share, the next to start
  int page_end_;
  int in_flight_ = 0;  // units that are started and not attended to
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
