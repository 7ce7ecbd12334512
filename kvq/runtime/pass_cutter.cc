#include "kvq/runtime/pass_cutter.h"

#include <algorithm>

namespace kvq {

std::vector<std::vector<PassItem>> cut_passes(std::span<const Chunk> chunks, LogitRows rows,
                                              int max_rows) {
  std::vector<std::vector<PassItem>> passes(1);
  std::size_t used = 0;
  for (const Chunk& chunk : chunks) {
    std::span<const int> rest = chunk.tokens;
    while (!rest.empty()) {
      const auto limit = max_rows > 0 ? static_cast<std::size_t>(max_rows) : used + rest.size();
      if (used == limit) {
        passes.emplace_back();
        used = 0;
        continue;
      }
      const std::size_t count = std::min(rest.size(), limit - used);
      const bool ends = count == rest.size();
      const int logit_rows = rows == LogitRows::kAll ? static_cast<int>(count) : (ends ? 1 : 0);
      passes.back().push_back({chunk.sequence, rest.first(count), logit_rows});
      rest = rest.subspan(count);
      used += count;
    }
  }
  return passes;
}

}  // namespace kvq
