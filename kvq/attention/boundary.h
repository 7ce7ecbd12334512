// Where a query stops reading packed pages.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kvq/cache/view.h"

namespace kvq {

// The query at `position` reads positions [S, boundary) from pages, [0, S) and [boundary, position]
// from exact rows. That is P(position), or where the tail begins if that is later (rows that only
// pages hold); with exact_prefill every row that the tail holds is read from there.
inline std::int64_t query_boundary(const LayerView& view, std::int64_t position,
                                   bool exact_prefill) {
  const std::int64_t sinks = view.sink_tokens;
  const std::int64_t packed =
      exact_prefill ? sinks : packed_boundary(position, view.sink_tokens, view.window);
  return std::max(packed, view.tail.first);
}

}  // namespace kvq
