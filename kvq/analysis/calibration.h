// The text on which formats are tried.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "kvq/eval/windows.h"
#include "kvq/runtime/engine.h"

namespace kvq {

struct CalibrationOptions {
  std::optional<std::string> text = {};  // null: the model writes it
  std::string name = {};                 // of the text, for errors
  int windows = 4;                       // of it, at most
  int copies = 2;                        // windows of copy_windows() more
  std::uint64_t seed = 0;                // of text that the model writes, and of copies
};

// Windows from all over the text: beginnings of books and articles are alike. The model writes its
// own from random openings, for the same reason. The copies come last.
Result<std::vector<TokenWindow>> calibration_windows(Engine& engine, const Tokenizer& tokenizer,
                                                     const CalibrationOptions& options,
                                                     const std::shared_ptr<PagePool>& pool);

// `count` windows of `tokens` tokens that only copying can predict: the begin token, then tokens
// drawn at random from `source`, then these once more from their start. In plain text, a mean over
// all positions hardly notices the few that look something up far behind.
std::vector<TokenWindow> copy_windows(std::span<const TokenWindow> source, int count, int tokens,
                                      std::uint64_t seed);

// Ok if every window is long enough to read a packed page, with some queries to spare.
Status check_calibration(std::span<const TokenWindow> windows, int sinks, int window);

}  // namespace kvq
