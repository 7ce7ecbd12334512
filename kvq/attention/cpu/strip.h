// The keys that a block of consecutive queries of one sequence sees, as strips of at most 64
// tokens: packed pages first, then sinks, then the tail, cut where pages would begin and end.
//
// Because exact strips follow the grid of the pages, a strip is either seen packed or seen exactly
// by a query, never in part; so each strip is seen by a range of consecutive queries, and inside it
// only causality cuts (the strip around a query's own position).
#pragma once

#include <cstdint>

#include "kvq/cache/view.h"

namespace kvq {

struct Strip {
  const PageRef* page = nullptr;    // null: exact rows
  const ExactRows* rows = nullptr;  // where they stand
  std::int64_t base = 0;            // position of the first token
  int count = 0;                    // tokens
  int first_query = 0;              // queries of the block that see it: [first_query, end_query)
  int end_query = 0;

  // Tokens, from the strip's first on, that the query at `position` sees.
  int visible(std::int64_t position) const {
    const std::int64_t causal = position - base + 1;
    return causal < count ? static_cast<int>(causal) : count;
  }
};

class StripList {
 public:
  // The block's queries stand at positions [first, first + queries).
  StripList(const LayerView& view, std::int64_t first, int queries, bool exact_prefill);

  int size() const { return pages_ + sinks_ + tails_; }
  int pages() const { return pages_; }  // strips [0, pages()) are packed
  std::int64_t first_position() const { return first_; }
  Strip at(int index) const;

 private:
  Strip page_at(int index) const;
  Strip tail_at(int index) const;

  const LayerView* view_;
  std::int64_t first_;
  int queries_;
  bool exact_prefill_;
  std::int64_t tail_begin_;  // position of the first tail strip
  int pages_ = 0;
  int sinks_ = 0;
  int tails_ = 0;
};

}  // namespace kvq
