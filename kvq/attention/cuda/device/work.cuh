// Who reads what: the split of all units of work over all warps, computed by each warp for itself
// from the sequences' lengths, so that lengths may change between launches of one graph.
//
//   item   = one kv head (and tile of query heads) of one sequence
//   unit   = up to 16 exact rows, of the sinks or of the tail, or a page; an item begins with its
//            exact units, so that few warps go from rows to pages
//   fixed  = an item's units but for a share of the pages of a long item, which the warps that
//            have finished claim one by one: the drift of a static split costs 10 %
//
// Where all sequences are of one length, a few warps may stay idle, so that every item has the same
// number of warps and, if that costs little too, whole blocks or whole parts of one: then nothing
// is cut twice, and most or all joining is done in shared memory.
//
//   fixed units of all items  |--item 0--|--item 1-------|-2-|------ .. --|
//   cut evenly                |  warp 0  |  warp 1  |  warp 2  |  ..
//
// A warp claims pages of its last item only. A long item is longer than two warps' shares, so at
// least one warp ends in it.
//
// Partial results of an item: the warps whose last item it is leave one a block of warps, in the
// slot of the block's first such warp; the one warp that may end the item and go on to the next
// leaves its own in a second row of slots. All of it follows from the cut by arithmetic.
#pragma once

#include "kvq/attention/cuda/decode_params.h"
#include "kvq/attention/cuda/device/fragments.cuh"

namespace kvq::cuda {

// dividend / divisor, rounded down; dividend >= 0, quotient below 2^20.
__device__ __forceinline__ int divide(int dividend, Divisor divisor) {
  int quotient = __float2int_rz(static_cast<float>(dividend) * divisor.inverse);
  const int rest = dividend - quotient * divisor.number;
  if (rest < 0) --quotient;
  if (rest >= divisor.number) ++quotient;
  return quotient;
}
__device__ __forceinline__ int divide(int dividend, int divisor) {
  return divide(dividend, Divisor{divisor, __fdividef(1.0F, static_cast<float>(divisor))});
}

struct SequenceUnits {
  int exact;
  int total;
  int fixed;
};

// How all fixed units are cut; the same for all warps. Seldom needed, so kept in shared memory.
struct Cut {
  int long_item;  // units that make an item a long one
  int fixed_units;
  int quotient;  // of fixed_units and the number of warps
  int remainder;
  Divisor warps;  // that have a range
};

// Units of exact rows: those of the sinks, then those of the tail.
__device__ __forceinline__ int exact_units_of(int rows) {
  return (rows + kExactUnitRows - 1) / kExactUnitRows;
}

// What a warp has of an item from the start: units of exact rows and, after them, pages, by their
// numbers in the sequence.
struct Share {
  int exact;
  int exact_end;
  int page;
  int page_end;
};

inline constexpr int kNoPage = -1;

class Work {
 public:
  // cut: in shared memory, of this warp.
  __device__ Work(const DecodeParams& params, int warp, Lane lane, Cut* cut)
      : params_(params),
        lane_(lane),
        cut_(cut),
        items_per_sequence_(params.kv_heads * params.head_tiles) {
    const SequenceLength first = length_of(lane.index);
    int units = units_of(first);
#pragma unroll 1
    for (int i = 32 + lane.index; i < params.sequences; i += 32) units += units_of(length_of(i));
    units = __reduce_add_sync(0xffffffffU, units) * items_per_sequence_;
    const int long_item = 2 * divide(units, params.warps) + 2;
    int fixed = count(first, long_item).fixed;
    int longest = fixed;
#pragma unroll 1
    for (int i = 32 + lane.index; i < params.sequences; i += 32) {
      const int other = count(length_of(i), long_item).fixed;
      fixed += other;
      longest = max(longest, other);
    }
    fixed = __reduce_add_sync(0xffffffffU, fixed);
    longest = __reduce_max_sync(0xffffffffU, longest);
    const bool alike = longest * params.sequences == fixed;
    Cut mine{long_item, fixed * items_per_sequence_, 0, 0,
             alike ? params.even_warps : params.warps};
    mine.quotient = divide(mine.fixed_units, mine.warps);
    mine.remainder = mine.fixed_units - mine.quotient * mine.warps.number;
    if (lane.index == 0) *cut_ = mine;
    idle_ = warp >= mine.warps.number;
    if (idle_) return;
    end_ = begin_of(mine, warp + 1);
    find_first_item(begin_of(mine, warp), first, mine.long_item);
    __syncwarp();
  }

  // Has no range and takes part in no item; nothing else may be asked.
  __device__ bool idle() const { return idle_; }

  __device__ const Share& share() const { return share_; }

  // Pages may be left to be claimed when all of the share are started.
  __device__ bool may_claim() const { return !another_item() && units_.fixed < units_.total; }
  // Starts a claim if `claims`; what came of it had better be asked later. No branches, here and in
  // claimed_page(): they would cost more than all else.
  __device__ __forceinline__ int claim(bool claims) const {
    int number = 0;
    asm volatile(
        "{\n.reg .pred p;\n"
        "setp.ne.u32 p, %2, 0;\n"
        "@p atom.global.add.u32 %0, [%1], 1;\n}"
        : "+r"(number)
        : "l"(&params_.counters[item()].claims), "r"(claims && lane_.index == 0 ? 1U : 0U)
        : "memory");
    return number;
  }
  // The page that was claimed, or kNoPage: all are taken. Without a claim: `page`.
  __device__ __forceinline__ int claimed_page(bool claims, int claim, int page) {
    const int index = units_.fixed + __shfl_sync(0xffffffffU, claim, 0);
    const bool taken = index >= units_.total;
    if (claims) page = taken ? kNoPage : index - units_.exact;
    if (claims && taken) units_.total = units_.fixed;  // no more claims
    return page;
  }

  // The range goes on behind the item.
  __device__ bool another_item() const { return item_begin_ + units_.fixed < end_; }
  __device__ void start_next_item() {
    item_begin_ += units_.fixed;
    if (++head_ == items_per_sequence_) {
      head_ = 0;
      ++sequence_;
    }
    units_ = count(length_of(sequence_), cut_->long_item);
    start_item(item_begin_);
  }

  __device__ int sequence() const { return sequence_; }
  // kv head * head_tiles + head tile
  __device__ int head() const { return head_; }
  __device__ int item() const { return sequence_ * items_per_sequence_ + head_; }

  // Warps first .. last have the current item as their last one; `last + 1` may have ended it.
  struct Contributors {
    int first;
    int last;
    bool passing;
    // Warps first .. last in blocks of `warps_per_block`, and the passing one.
    __device__ int blocks(int warps_per_block) const {
      if (last < first) return 0;
      return divide(last, warps_per_block) - divide(first, warps_per_block) + 1;
    }
    __device__ int count(int warps_per_block) const {
      return blocks(warps_per_block) + (passing ? 1 : 0);
    }
  };
  __device__ Contributors contributors() const {
    const Cut cut = *cut_;
    Contributors result;
    const int item_end = item_begin_ + units_.fixed;
    const int warps = cut.warps.number;
    result.first = first_ending_behind(cut, item_begin_);
    result.last = item_end == cut.fixed_units ? warps - 1 : first_ending_behind(cut, item_end) - 1;
    result.passing = result.last + 1 < warps && begin_of(cut, result.last + 1) < item_end;
    return result;
  }

 private:
  __device__ SequenceLength length_of(int sequence) const {
    return sequence < params_.sequences ? params_.lengths[sequence] : SequenceLength{-1, 0, 0};
  }
  // An empty sequence has one exact unit without rows; one that does not exist has none.
  __device__ static int units_of(SequenceLength length) {
    if (length.pages < 0) return 0;
    const int exact = exact_units_of(length.sinks) + exact_units_of(length.tail);
    return max(exact + length.pages, 1);
  }
  // Of one item of the sequence.
  __device__ SequenceUnits count(SequenceLength length, int long_item) const {
    SequenceUnits units;
    units.total = units_of(length);
    units.exact = units.total - length.pages;
    units.fixed = units.total;
    if (units.total >= long_item) {
      units.fixed -=
          static_cast<int>(static_cast<unsigned>(length.pages) * params_.claimed_share >> 10U);
    }
    return units;
  }

  // First fixed unit of a warp's range.
  __device__ static int begin_of(const Cut& cut, int warp) {
    return warp * cut.quotient + divide(warp * cut.remainder, cut.warps);
  }
  // A warp's last unit, or the place of its empty range.
  __device__ static int last_position(const Cut& cut, int warp) {
    return max(begin_of(cut, warp), begin_of(cut, warp + 1) - 1);
  }
  // The first warp whose last position is not before `position`.
  __device__ static int first_ending_behind(const Cut& cut, int position) {
    int warp = static_cast<int>(
        __fdividef(static_cast<float>(position), static_cast<float>(cut.fixed_units)) *
        static_cast<float>(cut.warps.number));
    warp = min(warp, cut.warps.number - 1);
#pragma unroll 1
    while (warp > 0 && last_position(cut, warp - 1) >= position) --warp;
#pragma unroll 1
    while (last_position(cut, warp) < position) ++warp;
    return warp;
  }

  // The warp's units of the item: from `position`, in the item, to the end of the range.
  __device__ __forceinline__ void start_item(int position) {
    const int first = position - item_begin_;
    const int last = min(end_ - item_begin_, units_.fixed);
    share_.exact = min(first, units_.exact);
    share_.exact_end = min(last, units_.exact);
    share_.page = first - share_.exact;
    share_.page_end = last - share_.exact_end;
  }

  // own: length of the sequence of the lane's number.
  __device__ __forceinline__ void find_first_item(int position, SequenceLength own, int long_item) {
    int before = 0;  // fixed units of the sequences before the 32 at hand, one item each
#pragma unroll 1
    for (int first = 0;; first += 32) {
      if (first > 0) own = length_of(first + lane_.index);
      const int fixed = count(own, long_item).fixed;
      int through = fixed;
#pragma unroll
      for (int distance = 1; distance < 32; distance *= 2) {
        const int other = __shfl_up_sync(0xffffffffU, through, distance);
        if (lane_.index >= distance) through += other;
      }
      const unsigned beyond =
          __ballot_sync(0xffffffffU, (before + through) * items_per_sequence_ > position);
      if (beyond == 0 && first + 32 < params_.sequences) {
        before += __shfl_sync(0xffffffffU, through, 31);
        continue;
      }
      const int found = __ffs(static_cast<int>(beyond)) - 1;
      sequence_ = first + found;
      const int begin =
          (before + __shfl_sync(0xffffffffU, through - fixed, found)) * items_per_sequence_;
      const SequenceLength length = {__shfl_sync(0xffffffffU, own.pages, found),
                                     __shfl_sync(0xffffffffU, own.sinks, found),
                                     __shfl_sync(0xffffffffU, own.tail, found)};
      units_ = count(length, long_item);
      head_ = divide(position - begin, units_.fixed);
      item_begin_ = begin + head_ * units_.fixed;
      start_item(position);
      return;
    }
  }

  const DecodeParams& params_;
  Lane lane_;
  Cut* cut_;
  bool idle_;
  int items_per_sequence_;
  int end_;
  int sequence_;
  int head_;
  int item_begin_;
  SequenceUnits units_;
  Share share_;
};

}  // namespace kvq::cuda
