// Who reads what: the split of all units of work over all warps, computed by each warp for itself
// from the sequences' lengths, so that lengths may change between launches of one graph.
//
//   item   = one kv head (and tile of 8 query heads) of one sequence
//   unit   = a page, or 16 exact rows; an item's exact units come first
//   fixed  = an item's units but for a share of the pages of a long item, which the warps that
//            have finished claim one by one: the drift of a static split costs 10 %
//
// Where all sequences are of one length, a few warps may stay idle, so that every item has the same
// number of warps and, if that costs little too, whole blocks or whole parts of one: then nothing is
// cut twice, and most or all joining is done in shared memory.
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
  int warps;  // that have a range
};

// Warps that get a range if all items are alike: a multiple of the items, or all of them.
__device__ __forceinline__ int even_warps(int items, int warps, int warps_per_block) {
  int each = warps / items;
  if (each == 0) return warps;
  const int beyond_blocks = each % warps_per_block;
  if (each > warps_per_block && 16 * beyond_blocks <= each) each -= beyond_blocks;
  return 16 * (warps - each * items) <= warps ? each * items : warps;
}

struct Unit {
  enum Kind : int { kNone, kExact, kPage } kind;
  int index;  // of 16 rows, or of the page in its sequence
};

class Work {
 public:
  // cut: in shared memory, of this warp.
  __device__ Work(const DecodeParams& params, int warp, int warps, int warps_per_block, Lane lane,
                  Cut* cut)
      : params_(params),
        lane_(lane),
        cut_(cut),
        items_per_sequence_(params.kv_heads * params.head_tiles) {
    int units = 0;
    for (int first = 0; first < params.sequences; first += 32) {
      units += first + lane.index < params.sequences ? units_of(length_of(first + lane.index)) : 0;
    }
    units = __reduce_add_sync(0xffffffffU, units) * items_per_sequence_;
    if (lane.index == 0) cut_->long_item = 2 * (units / warps) + 2;
    __syncwarp();
    int fixed = 0;
    int longest = 0;
    for (int first = 0; first < params.sequences; first += 32) {
      const int own = fixed_units_of(first + lane.index);
      fixed += own;
      longest = max(longest, own);
    }
    fixed = __reduce_add_sync(0xffffffffU, fixed);
    longest = __reduce_max_sync(0xffffffffU, longest);
    const bool alike = longest * params.sequences == fixed;
    fixed *= items_per_sequence_;
    const int used =
        alike ? even_warps(params.sequences * items_per_sequence_, warps, warps_per_block) : warps;
    if (lane.index == 0) {
      cut_->fixed_units = fixed;
      cut_->quotient = fixed / used;
      cut_->remainder = fixed % used;
      cut_->warps = used;
    }
    idle_ = warp >= used;
    if (idle_) return;
    __syncwarp();
    position_ = begin_of(warp);
    end_ = begin_of(warp + 1);
    find_first_item();
  }

  // Has no range and takes part in no item; nothing else may be asked.
  __device__ bool idle() const { return idle_; }

  // The first unit of the range, or the first claim where the range is empty.
  __device__ Unit first() { return position_ < end_ ? unit_at(position_ - item_begin_) : claim(); }

  // The next unit is in the range: no claim is needed.
  __device__ bool next_is_fixed() const { return position_ + 1 < end_; }
  __device__ bool next_begins_item() const { return position_ + 1 == item_begin_ + units_.fixed; }
  // Moves on inside the item.
  __device__ Unit advance() {
    ++position_;
    return unit_at(position_ - item_begin_);
  }
  // Moves on inside the range.
  __device__ Unit advance_to_next_item() {
    ++position_;
    item_begin_ = position_;
    if (++head_ == items_per_sequence_) {
      head_ = 0;
      ++sequence_;
      take_sequence();
    }
    return unit_at(0);
  }

  // Asks for a page beyond the fixed ones; to be turned into a unit once the number is needed.
  __device__ int start_claim() {
    int number = 1 << 30;
    if (units_.fixed < units_.total && lane_.index == 0) {
      number = static_cast<int>(atomicAdd(&params_.counters[item()].claims, 1U));
    }
    return number;
  }
  __device__ Unit finish_claim(int number) const {
    number = __shfl_sync(0xffffffffU, number, 0);
    if (number >= units_.total - units_.fixed) return {Unit::kNone, 0};
    return {Unit::kPage, units_.fixed + number - units_.exact};
  }
  __device__ Unit claim() { return finish_claim(start_claim()); }

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
      return last < first ? 0 : last / warps_per_block - first / warps_per_block + 1;
    }
    __device__ int count(int warps_per_block) const {
      return blocks(warps_per_block) + (passing ? 1 : 0);
    }
  };
  __device__ Contributors contributors() const {
    Contributors result;
    const int item_end = item_begin_ + units_.fixed;
    result.first = first_ending_behind(item_begin_);
    result.last = item_end == cut_->fixed_units ? cut_->warps - 1 : first_ending_behind(item_end) - 1;
    result.passing = result.last + 1 < cut_->warps && begin_of(result.last + 1) < item_end;
    return result;
  }

 private:
  __device__ SequenceLength length_of(int sequence) const {
    return params_.lengths[sequence];
  }
  __device__ static int exact_units(SequenceLength length) {
    return (length.sinks + length.tail + kExactUnitRows - 1) / kExactUnitRows;
  }
  // An empty sequence has one exact unit without rows.
  __device__ static int units_of(SequenceLength length) {
    return max(exact_units(length) + length.pages, 1);
  }
  __device__ SequenceUnits count(SequenceLength length) const {
    SequenceUnits units;
    units.total = units_of(length);
    units.exact = units.total - length.pages;
    units.fixed = units.total;
    if (units.total >= cut_->long_item) {
      units.fixed -= static_cast<int>(static_cast<unsigned>(length.pages) * params_.claimed_share >>
                                      10U);
    }
    return units;
  }
  // Of one item of the sequence; 0 for a sequence that does not exist.
  __device__ int fixed_units_of(int sequence) const {
    return sequence < params_.sequences ? count(length_of(sequence)).fixed : 0;
  }

  // First fixed unit of a warp's range.
  __device__ int begin_of(int warp) const {
    return warp * cut_->quotient + static_cast<int>(static_cast<unsigned>(warp * cut_->remainder) /
                                               static_cast<unsigned>(cut_->warps));
  }
  // A warp's last unit, or the place of its empty range.
  __device__ int last_position(int warp) const { return max(begin_of(warp), begin_of(warp + 1) - 1); }
  // The first warp whose last position is not before `position`.
  __device__ int first_ending_behind(int position) const {
    int warp = static_cast<int>(__fdividef(static_cast<float>(position), cut_->fixed_units) *
                               static_cast<float>(cut_->warps));
    warp = min(warp, cut_->warps - 1);
    while (warp > 0 && last_position(warp - 1) >= position) --warp;
    while (last_position(warp) < position) ++warp;
    return warp;
  }

  __device__ void find_first_item() {
    int before = 0;  // fixed units of the sequences before the 32 at hand, one item each
    for (int first = 0;; first += 32) {
      const int own = fixed_units_of(first + lane_.index);
      int through = own;
#pragma unroll
      for (int distance = 1; distance < 32; distance *= 2) {
        const int other = __shfl_up_sync(0xffffffffU, through, distance);
        if (lane_.index >= distance) through += other;
      }
      const unsigned beyond =
          __ballot_sync(0xffffffffU, (before + through) * items_per_sequence_ > position_);
      if (beyond != 0 || first + 32 >= params_.sequences) {
        const int found = __ffs(static_cast<int>(beyond)) - 1;
        sequence_ = first + found;
        const int begin =
            (before + __shfl_sync(0xffffffffU, through - own, found)) * items_per_sequence_;
        take_sequence();
        head_ = (position_ - begin) / units_.fixed;
        item_begin_ = begin + head_ * units_.fixed;
        return;
      }
      before += __shfl_sync(0xffffffffU, through, 31);
    }
  }
  __device__ void take_sequence() { units_ = count(length_of(sequence_)); }
  __device__ Unit unit_at(int index) const {
    if (index < units_.exact) return {Unit::kExact, index};
    return {Unit::kPage, index - units_.exact};
  }

  const DecodeParams& params_;
  Lane lane_;
  Cut* cut_;
  bool idle_;
  int items_per_sequence_;
  int position_;
  int end_;
  int sequence_;
  int head_;
  int item_begin_;
  SequenceUnits units_;
};

}  // namespace kvq::cuda
