// How the chunks of one forward() become passes.
#pragma once

#include <span>
#include <vector>

#include "kvq/runtime/engine.h"
#include "kvq/runtime/forward_pass.h"

namespace kvq {

// Passes of at most `max_rows` tokens, filled in order; a chunk that does not fit in what is left
// of a pass goes on in the next. max_rows = 0: one pass for all.
std::vector<std::vector<PassItem>> cut_passes(std::span<const Chunk> chunks, LogitRows rows,
                                              int max_rows);

}  // namespace kvq
