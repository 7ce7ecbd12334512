// Layer views made by hand from random rows, for tests and benchmarks.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "kvq/cache/view.h"

namespace kvq {

struct TestViewShape {
  LayerSpec spec;
  int kv_heads = 1;
  int head_dim = 64;
  int sinks = 4;
  int window = 64;
  std::int64_t length = 0;
  std::int64_t chunk = 1;  // newest tokens, whose exact rows the tail still holds
  std::uint64_t seed = 1;
};

// What a cache holds after appending a chunk: every page below the newest position's boundary,
// sinks, and a tail from the boundary of the chunk's first position on. Keys have channels of
// different means and spreads, as those of models have.
class TestView {
 public:
  explicit TestView(const TestViewShape& shape);
  TestView(const TestView&) = delete;
  TestView& operator=(const TestView&) = delete;

  const LayerView& view() const { return view_; }
  const PageFormat& format() const { return format_; }

  // The same rows as they were when `length` tokens had been appended, the last `chunk` of them at
  // once. The result points into this object.
  LayerView at(std::int64_t length, std::int64_t chunk) const;

 private:
  struct alignas(kPageAlignment) Line {
    std::byte bytes[kPageAlignment];
  };

  void pack_pages();

  TestViewShape shape_;
  PageFormat format_;
  std::vector<Half> key_;    // [kv_heads, length, head_dim]
  std::vector<Half> value_;  // likewise
  std::vector<Line> lines_;  // [page, kv_head, page_bytes]
  std::vector<PageRef> pages_;
  LayerView view_;
};

// `count` standard normal numbers.
std::vector<float> random_normal(std::size_t count, std::uint64_t seed);

}  // namespace kvq
