// The text on which formats are tried.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "kvq/eval/windows.h"
#include "kvq/runtime/engine.h"

namespace kvq {

// `count` windows of `tokens` tokens that only copying can predict: the begin token, then tokens
// drawn at random from `source`, then these once more from their start. In plain text, a mean over
// all positions hardly notices the few that look something up far behind.
std::vector<TokenWindow> copy_windows(std::span<const TokenWindow> source, int count, int tokens,
                                      std::uint64_t seed);

// Ok if every window is long enough to read a packed page, with some queries to spare.
Status check_calibration(std::span<const TokenWindow> windows, int sinks, int window);

}  // namespace kvq
