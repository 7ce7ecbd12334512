// What attention sees of one layer of one sequence: pointers into the cache, valid until the
// sequence next changes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "kvq/base/half.h"
#include "kvq/codec/page_format.h"

namespace kvq {

// One page of 64 tokens for every kv head: head h's page starts at data + h * head_stride bytes.
struct PageRef {
  const std::byte* data;
  std::int64_t head_stride;
};

// Consecutive tokens in fp16: kv head h, token i (position first + i) starts at
// key + h * head_stride + i * head_dim.
struct ExactRows {
  const Half* key = nullptr;    // [kv_heads, head_stride / head_dim, head_dim], `count` tokens used
  const Half* value = nullptr;  // likewise
  std::int64_t head_stride = 0;  // elements
  std::int64_t first = 0;        // position of the first token
  std::int64_t count = 0;
};

struct LayerView {
  const PageFormat* format = nullptr;
  int kv_heads = 0;
  std::int64_t length = 0;         // tokens in this layer, those of the current chunk included
  int sink_tokens = 0;             // S of the cache; sinks.count = min(S, length)
  int window = 0;                  // W of the cache
  ExactRows sinks;                 // positions [0, sinks.count)
  std::span<const PageRef> pages;  // page i holds positions S + 64 i .. S + 64 i + 63
  // Positions [tail.first, length), at least those behind the last page. tail.first <= P(position
  // of the chunk's first row), with one exception: after Sequence::truncate() cut below tokens that
  // pages already hold, tail.first is the end of the last page, and a query whose P(p) lies before
  // it reads positions [P(p), tail.first) from the pages too.
  ExactRows tail;
};

// P(p), the packed boundary of the query at `position`: positions [S, P(p)) are read from packed
// pages, [0, S) and [P(p), p] from exact rows. It depends on the position alone, so the way tokens
// are cut into chunks does not change what a query sees.
//   P(p) = S + 64 * floor(max(0, p - S - W) / 64)
constexpr std::int64_t packed_boundary(std::int64_t position, int sinks, int window) {
  const std::int64_t behind = position - sinks - window;
  return sinks + (behind > 0 ? behind / kPageTokens * kPageTokens : 0);
}

// Pages that hold the packed part of `length` tokens.
constexpr std::int64_t packed_pages(std::int64_t length, int sinks, int window) {
  return length > 0 ? (packed_boundary(length - 1, sinks, window) - sinks) / kPageTokens : 0;
}

}  // namespace kvq
