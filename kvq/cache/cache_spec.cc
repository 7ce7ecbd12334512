#include "kvq/cache/cache_spec.h"

#include <cassert>

#include "kvq/cache/view.h"

namespace kvq {
namespace {

constexpr int kMaxKvHeads = 4096;

PageFormat page_format(const CacheSpec& spec, const LayerSpec& layer) {
  auto format = PageFormat::create(layer, spec.head_dim);
  assert(format && "a valid spec");
  return *format;
}

}  // namespace

CacheSpec CacheSpec::uniform(const LayerSpec& spec, int layers, int kv_heads, int head_dim) {
  CacheSpec cache;
  cache.layers.assign(static_cast<std::size_t>(layers), spec);
  cache.kv_heads = kv_heads;
  cache.head_dim = head_dim;
  return cache;
}

CacheSpec CacheSpec::of(const Plan& plan) {
  return {.layers = plan.layers,
          .kv_heads = plan.model.kv_heads,
          .head_dim = plan.model.head_dim,
          .sinks = plan.sinks,
          .window = plan.window};
}

Status validate(const CacheSpec& spec) {
  if (spec.layers.empty()) return fail("cache spec: expected at least one layer, found none");
  if (spec.kv_heads < 1 || spec.kv_heads > kMaxKvHeads) {
    return fail("cache spec: kv_heads: expected 1 to {}, found {}", kMaxKvHeads, spec.kv_heads);
  }
  if (spec.sinks < 0) return fail("cache spec: sinks: expected 0 or more, found {}", spec.sinks);
  if (spec.window < 0 || spec.window % kPageTokens != 0) {
    return fail("cache spec: window: expected a multiple of {} tokens, found {}", kPageTokens,
                spec.window);
  }
  for (std::size_t layer = 0; layer < spec.layers.size(); ++layer) {
    const auto format = PageFormat::create(spec.layers[layer], spec.head_dim);
    if (!format) return fail("cache spec: layer {}: {}", layer, format.error().message);
  }
  return {};
}

std::int64_t cache_bytes(const CacheSpec& spec, std::int64_t tokens) {
  const std::int64_t pages = packed_pages(tokens, spec.sinks, spec.window);
  std::int64_t page_bytes = 0;  // of one page in every layer
  for (const LayerSpec& layer : spec.layers) {
    page_bytes += static_cast<std::int64_t>(page_format(spec, layer).page_bytes);
  }
  return pages * spec.kv_heads * page_bytes + cache_bytes_16bit(spec, tokens - pages * kPageTokens);
}

std::int64_t cache_bytes_16bit(const CacheSpec& spec, std::int64_t tokens) {
  const std::int64_t numbers =
      std::int64_t{2} * spec.kv_heads * spec.head_dim;  // a token and layer
  return tokens * static_cast<std::int64_t>(spec.layers.size() * sizeof(Half)) * numbers;
}

double effective_bits(const CacheSpec& spec) { return effective_bits(spec.layers, spec.head_dim); }

}  // namespace kvq
