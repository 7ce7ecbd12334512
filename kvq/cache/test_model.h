// For tests: made-up rows, and a plain model of a sequence that says what every view must hold.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "kvq/cache/sequence.h"

namespace kvq {

// Keys and values of one layer, [tokens, kv_heads, head_dim] each.
struct Rows {
  std::vector<float> key;
  std::vector<float> value;
};

// Rows of every layer, row t the same whatever `tokens` is: gaussians with some large channels.
std::vector<Rows> make_rows(const CacheSpec& spec, std::int64_t tokens, unsigned seed = 1);

// A spec of these layers ("k4v2", ...), on top of small shapes.
std::shared_ptr<CacheSpec> make_spec(const std::vector<std::string>& layers, int kv_heads,
                                     int head_dim, int sinks, int window);

// Appends rows [first, first + tokens) as one chunk, all layers.
Status append_rows(Sequence& sequence, const std::vector<Rows>& rows, std::int64_t first,
                   int tokens);
// Appends rows [sequence.length(), end) in chunks of `chunk` tokens; a test failure on an error.
void append_until(Sequence& sequence, const std::vector<Rows>& rows, std::int64_t end, int chunk);

// What the query at `position` reads of a layer, dequantized: keys then values,
// [2][kv_heads][position + 1][head_dim].
std::vector<float> visible_rows(const LayerView& view, std::int64_t position);

// Numbers of pages that follow one another in one extent.
std::vector<std::int64_t> extent_runs(const LayerView& view);

// One layer of a sequence in plain containers: every row ever needed, every page on its own.
class ModelLayer {
 public:
  ModelLayer(const CacheSpec& spec, int layer);

  void append(const Rows& rows, std::int64_t first, int tokens);
  // What begin_chunk() then abort_chunk() leave.
  void drop_old_rows();
  void truncate(std::int64_t length);
  std::int64_t length() const { return static_cast<std::int64_t>(rows_.size()); }

  // Empty if `view` shows exactly this, else the first difference.
  std::string difference(const LayerView& view) const;

 private:
  using TokenRow = std::vector<Half>;   // [2][kv_heads][head_dim]
  using Page = std::vector<std::byte>;  // [kv_heads][page_bytes]

  std::int64_t pages_end() const;
  Page pack(std::int64_t start) const;
  void unpack(const Page& page, std::int64_t start);
  std::string row_difference(const ExactRows& rows, const char* name) const;

  CacheSpec spec_;
  PageFormat format_;
  std::vector<TokenRow> rows_;
  std::vector<Page> pages_;
  std::int64_t held_from_;  // first position in the tail
};

// All layers.
class ModelSequence {
 public:
  explicit ModelSequence(const CacheSpec& spec);

  void append(const std::vector<Rows>& rows, std::int64_t first, int tokens);
  void drop_old_rows();
  void truncate(std::int64_t length);
  std::int64_t length() const { return layers_.front().length(); }
  std::string difference(const Sequence& sequence) const;

 private:
  std::vector<ModelLayer> layers_;
};

}  // namespace kvq
