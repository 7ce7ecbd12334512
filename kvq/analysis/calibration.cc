#include "kvq/analysis/calibration.h"

#include <algorithm>
#include <iterator>
#include <random>

#include "kvq/analysis/attention_error.h"

namespace kvq {
namespace {

Result<std::vector<TokenWindow>> spread_windows(const Tokenizer& tokenizer, std::string_view text,
                                                const WindowOptions& options) {
  WindowOptions all = options;
  all.count = static_cast<int>(text.size());  // more than there are
  KVQ_ASSIGN_OR_RETURN(std::vector<TokenWindow> windows, cut_windows(tokenizer, text, all));
  const auto count = std::min(windows.size(), static_cast<std::size_t>(options.count));
  std::vector<TokenWindow> spread;
  spread.reserve(count);
  for (std::size_t i = 0; i < count; ++i) {
    spread.push_back(std::move(windows[i * windows.size() / count]));
  }
  return spread;
}

}  // namespace

Result<std::vector<TokenWindow>> calibration_windows(Engine& engine, const Tokenizer& tokenizer,
                                                     const CalibrationOptions& options,
                                                     const std::shared_ptr<PagePool>& pool) {
  const WindowOptions cut = {.count = options.windows,
                             .tokens = std::min(kWindowTokens, engine.config().context)};
  std::vector<TokenWindow> windows;
  if (options.text) {
    auto spread = spread_windows(tokenizer, *options.text, cut);
    if (!spread) return fail("{}: {}", options.name, spread.error().message);
    windows = *std::move(spread);
  } else {
    KVQ_ASSIGN_OR_RETURN(
        windows, write_windows(engine, tokenizer, cut, Opening::kRandom, options.seed, pool));
  }
  auto copies = copy_windows(windows, options.copies, cut.tokens, options.seed);
  windows.insert(windows.end(), std::make_move_iterator(copies.begin()),
                 std::make_move_iterator(copies.end()));
  return windows;
}

std::vector<TokenWindow> copy_windows(std::span<const TokenWindow> source, int count, int tokens,
                                      std::uint64_t seed) {
  std::mt19937_64 random(seed);
  const auto draw = [&] {
    const TokenWindow& window = source[random() % source.size()];
    return window[1 + random() % (window.size() - 1)];
  };
  const auto total = static_cast<std::size_t>(tokens);
  std::vector<TokenWindow> windows;
  for (int i = 0; i < count; ++i) {
    TokenWindow& window = windows.emplace_back(TokenWindow{source[0][0]});
    window.reserve(total);
    const std::size_t half = total / 2;
    while (window.size() < half) window.push_back(draw());
    while (window.size() < total) window.push_back(window[window.size() - half + 1]);
  }
  return windows;
}

Status check_calibration(std::span<const TokenWindow> windows, int sinks, int window) {
  if (windows.empty()) return fail("calibration: expected windows of text, found none");
  const int least = first_packed_query(sinks, window) + kQueryBlock;
  for (const TokenWindow& tokens : windows) {
    if (static_cast<int>(tokens.size()) < least) {
      return fail(
          "calibration: a window of {} tokens: expected at least {}, of which some read a packed "
          "page behind {} sinks and a window of {}",
          tokens.size(), least, sinks, window);
    }
  }
  return {};
}

}  // namespace kvq
