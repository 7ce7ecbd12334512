// How a cache format changes a model's predictions on text.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "kvq/eval/windows.h"
#include "kvq/runtime/engine.h"

namespace kvq {

struct TextScore {
  double nll = 0;   // mean negative log likelihood of the next token, nats; perplexity = e^nll
  double kl = 0;    // mean KL divergence, reference || format, of the next-token distribution, nats
  double top1 = 0;  // fraction of positions where both pick the same token
  std::int64_t positions = 0;  // that kl and top1 are means of; nll leaves out each window's last
};

struct TextScores {
  double reference_nll = 0;
  std::vector<TextScore> formats;
};

// Scores every format against `reference` (normally the same cache in 16 bits). Each window is read
// once by every format: a query's view of the cache depends on its position alone, so what a
// window's prefill computes is what decoding it token by token computes. Memory: one window's cache
// a format, and the logits of at most 64 MiB worth of positions, three times.
Result<TextScores> score_text(Engine& engine, std::span<const TokenWindow> windows,
                              const std::shared_ptr<const CacheSpec>& reference,
                              std::span<const std::shared_ptr<const CacheSpec>> formats,
                              const std::shared_ptr<PagePool>& pool);

}  // namespace kvq
