// Token windows that text scores are taken over.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "kvq/cache/page_pool.h"
#include "kvq/model/tokenizer.h"
#include "kvq/runtime/engine.h"

namespace kvq {

// Token ids of one window; the first is the begin token where the tokenizer adds one.
using TokenWindow = std::vector<int>;

// Tokens of a window, the begin token included, where the model's context allows.
inline constexpr int kWindowTokens = 1024;

struct WindowOptions {
  int count = 8;               // windows, at most
  int tokens = kWindowTokens;  // in each, the begin token included
};

// Consecutive windows of a text: the begin token, then the next tokens of the text, encoded whole
// and without special tokens. Only full windows are cut; fewer than `count` where the text is
// short, an error where it holds none.
Result<std::vector<TokenWindow>> cut_windows(const Tokenizer& tokenizer, std::string_view text,
                                             const WindowOptions& options);

// How a window that the model writes begins, behind the begin token.
enum class Opening {
  kLikely,  // with what the model finds likely: most windows are of the few kinds that open a text
  kRandom,  // with any token of the vocabulary: windows differ as much as the model's texts can
};

// Windows that the model writes itself: sampled at temperature 1 on a 16-bit cache, the same for
// the same seed. A stop token does not end a window.
Result<std::vector<TokenWindow>> write_windows(Engine& engine, const Tokenizer& tokenizer,
                                               const WindowOptions& options, Opening opening,
                                               std::uint64_t seed,
                                               const std::shared_ptr<PagePool>& pool);

// What formats are scored on: at most `count` windows of the text in `file`, or as many that the
// model writes where that is "".
Result<std::vector<TokenWindow>> read_windows(Engine& engine, const Tokenizer& tokenizer,
                                              const std::string& file, int count,
                                              std::uint64_t seed,
                                              const std::shared_ptr<PagePool>& pool);

}  // namespace kvq
