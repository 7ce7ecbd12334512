#include "kvq/eval/windows.h"

#include <algorithm>
#include <random>

#include "kvq/base/file.h"
#include "kvq/runtime/generate.h"

namespace kvq {
namespace {

// A token below `count` that stands for text, each as likely as any other.
int draw_token(const Tokenizer& tokenizer, int count, std::mt19937_64& random) {
  while (true) {
    const int token = static_cast<int>(random() % static_cast<std::uint64_t>(count));
    if (!tokenizer.decode({&token, 1}).empty()) return token;
  }
}

}  // namespace

Result<std::vector<TokenWindow>> cut_windows(const Tokenizer& tokenizer, std::string_view text,
                                             const WindowOptions& options) {
  KVQ_ASSIGN_OR_RETURN(const TokenWindow begin, tokenizer.encode("", true));
  KVQ_ASSIGN_OR_RETURN(const std::vector<int> tokens, tokenizer.encode(text, false));
  const std::size_t step = static_cast<std::size_t>(options.tokens) - begin.size();
  std::vector<TokenWindow> windows;
  for (std::size_t start = 0; start + step <= tokens.size(); start += step) {
    if (static_cast<int>(windows.size()) == options.count) break;
    TokenWindow& window = windows.emplace_back(begin);
    const auto first = tokens.begin() + static_cast<std::ptrdiff_t>(start);
    window.insert(window.end(), first, first + static_cast<std::ptrdiff_t>(step));
  }
  if (windows.empty()) {
    return fail("the text has {} tokens, a window needs {}", tokens.size(), step);
  }
  return windows;
}

Result<std::vector<TokenWindow>> write_windows(Engine& engine, const Tokenizer& tokenizer,
                                               const WindowOptions& options, Opening opening,
                                               std::uint64_t seed,
                                               const std::shared_ptr<PagePool>& pool) {
  KVQ_ASSIGN_OR_RETURN(TokenWindow begin, tokenizer.encode("", true));
  if (begin.empty()) {
    KVQ_ASSIGN_OR_RETURN(begin, tokenizer.encode("\n", true));
  }
  std::vector<TokenWindow> windows(static_cast<std::size_t>(options.count), begin);
  if (opening == Opening::kRandom) {
    std::mt19937_64 random(seed);
    const int count = std::min(tokenizer.size(), engine.config().vocabulary);
    for (TokenWindow& window : windows) window.push_back(draw_token(tokenizer, count, random));
  }
  GenerateOptions generation;
  generation.max_new_tokens = options.tokens - static_cast<int>(windows.front().size());
  generation.sampling = {.temperature = 1, .top_k = 0, .top_p = 1, .seed = seed};
  generation.ignore_stop_tokens = true;
  const auto spec = std::make_shared<const CacheSpec>(engine.cache_spec(LayerSpec{}, 0, 64));
  KVQ_ASSIGN_OR_RETURN(const Generation written, generate(engine, windows, spec, pool, generation));
  for (std::size_t i = 0; i < windows.size(); ++i) {
    windows[i].insert(windows[i].end(), written.tokens[i].begin(), written.tokens[i].end());
  }
  return windows;
}

Result<std::vector<TokenWindow>> read_windows(Engine& engine, const Tokenizer& tokenizer,
                                              const std::string& file, int count,
                                              std::uint64_t seed,
                                              const std::shared_ptr<PagePool>& pool) {
  const WindowOptions options{.count = count,
                              .tokens = std::min(kWindowTokens, engine.config().context)};
  if (file.empty()) {
    return write_windows(engine, tokenizer, options, Opening::kLikely, seed, pool);
  }
  KVQ_ASSIGN_OR_RETURN(const std::string text, read_file(file));
  auto windows = cut_windows(tokenizer, text, options);
  if (!windows) return fail("{}: {}", file, windows.error().message);
  return windows;
}

}  // namespace kvq
