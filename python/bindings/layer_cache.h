// The cached keys and values of one layer of a model, for a batch of sequences, and attention over
// them. A chunk is appended for all sequences at once; tokens that are not kept (padding) take no
// place in a sequence, so that padded sequences hold what they would hold alone.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "kvq/cache/sequence.h"
#include "python/bindings/tensor.h"

namespace kvq::python {

struct LayerCacheOptions {
  int sinks = 4;
  int window = 64;
  // Queries read their own chunk's rows unquantized (AttentionOptions::exact_prefill).
  bool exact_prefill = false;
};

class LayerCache {
 public:
  static Result<LayerCache> create(const LayerSpec& spec, int kv_heads, int head_dim,
                                   const LayerCacheOptions& options);
  LayerCache(LayerCache&&) = default;
  LayerCache& operator=(LayerCache&&) = default;

  int batch() const { return static_cast<int>(sequences_.size()); }
  const CacheSpec& spec() const { return *spec_; }
  bool exact_prefill() const { return exact_prefill_; }
  std::vector<std::int64_t> lengths() const;  // tokens of every sequence
  ByteCount bytes() const;                    // of all sequences

  // The first chunk decides the batch. On an error nothing has changed.
  //   key, value  [batch, kv_heads, tokens, head_dim]
  Status append(const Rows& key, const Rows& value, const KeptTokens& kept);
  // The queries of the newest tokens; `kept` as it was when they were appended.
  //   query   [batch, query_heads, tokens, head_dim]
  //   output  the same, in any order of dimensions
  Status attend(const Rows& query, const KeptTokens& kept, float scale, const Rows& output) const;
  // What the newest query reads: dequantized pages and exact rows.
  //   key, value  [batch, kv_heads, tokens, head_dim], tokens = the longest sequence's; shorter
  //   ones
  //               leave the rest as it is
  Status read(const Rows& key, const Rows& value) const;

  // Sequence i of the result is sequence source[i] of this.
  Result<LayerCache> select(std::span<const int> source) const;
  // The same in place; sequences used once are moved.
  Status reorder(std::span<const int> source);
  // One length a sequence; see Sequence::truncate().
  Status truncate(std::span<const std::int64_t> lengths);
  void reset() { sequences_.clear(); }

 private:
  LayerCache(std::shared_ptr<const CacheSpec> spec, bool exact_prefill, Isa isa);
  Status add_sequences(int count);
  Status check(const Rows& rows, const char* name) const;
  Status append_kept(const Rows& key, const Rows& value, const KeptTokens& kept);
  void read_head(int sequence, int head, const Rows& key, const Rows& value) const;

  std::shared_ptr<const CacheSpec> spec_;  // of one layer
  std::shared_ptr<PagePool> pool_;
  bool exact_prefill_;
  Isa isa_;
  std::vector<Sequence> sequences_;
};

}  // namespace kvq::python
