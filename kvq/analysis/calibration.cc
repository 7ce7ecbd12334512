#include "kvq/analysis/calibration.h"

#include <random>

#include "kvq/analysis/attention_error.h"

namespace kvq {

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
