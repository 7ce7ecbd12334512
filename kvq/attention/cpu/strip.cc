#include "kvq/attention/cpu/strip.h"

#include <algorithm>

#include "kvq/attention/boundary.h"

namespace kvq {

StripList::StripList(const LayerView& view, std::int64_t first, int queries, bool exact_prefill)
    : view_(&view),
      first_(first),
      queries_(queries),
      exact_prefill_(exact_prefill),
      tail_begin_(
          query_boundary(view, std::max<std::int64_t>(first, view.sink_tokens), exact_prefill)) {
  const std::int64_t last = first + queries - 1;
  const std::int64_t seen_sinks = std::min(view.sinks.count, last + 1);
  sinks_ = static_cast<int>((seen_sinks + kPageTokens - 1) / kPageTokens);
  if (last < view.sink_tokens) return;
  const std::int64_t boundary = query_boundary(view, last, exact_prefill);
  pages_ = static_cast<int>((boundary - view.sink_tokens) / kPageTokens);
  tails_ = static_cast<int>((last - tail_begin_) / kPageTokens + 1);
}

Strip StripList::at(int index) const {
  if (index < pages_) return page_at(index);
  index -= pages_;
  if (index >= sinks_) return tail_at(index - sinks_);
  Strip strip;
  strip.rows = &view_->sinks;
  strip.base = std::int64_t{index} * kPageTokens;
  strip.count =
      static_cast<int>(std::min<std::int64_t>(kPageTokens, view_->sinks.count - strip.base));
  strip.first_query = static_cast<int>(std::max<std::int64_t>(0, strip.base - first_));
  strip.end_query = queries_;
  return strip;
}

// Seen packed by all whose boundary is not before its end: p >= S + W + 64 (index + 1).
Strip StripList::page_at(int index) const {
  Strip strip;
  strip.page = &view_->pages[index];
  strip.base = view_->sink_tokens + std::int64_t{index} * kPageTokens;
  strip.count = kPageTokens;
  const std::int64_t end = strip.base + kPageTokens;
  if (view_->tail.first < end) {
    strip.first_query = static_cast<int>(std::max<std::int64_t>(0, end + view_->window - first_));
  }
  strip.end_query = queries_;
  return strip;
}

// Seen exactly by all whose boundary is not behind its base: p < base + W + 64.
Strip StripList::tail_at(int index) const {
  Strip strip;
  strip.rows = &view_->tail;
  strip.base = tail_begin_ + std::int64_t{index} * kPageTokens;
  strip.count =
      static_cast<int>(std::min<std::int64_t>(kPageTokens, first_ + queries_ - strip.base));
  strip.first_query = static_cast<int>(std::max<std::int64_t>(0, strip.base - first_));
  strip.end_query = queries_;
  if (!exact_prefill_) {
    const std::int64_t end = strip.base + view_->window + kPageTokens - first_;
    strip.end_query = static_cast<int>(std::min<std::int64_t>(queries_, end));
  }
  return strip;
}

}  // namespace kvq
