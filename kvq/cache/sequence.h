// The cached keys and values of one token sequence, all layers.
//
// Life of a chunk of n tokens:
//   begin_chunk(n)             takes all memory that the chunk can need; on failure nothing changed
//   for each layer, in order:
//     append(layer, k, v)      writes fp16 rows, packs the pages that leave the window
//     view(layer)              what attention reads, while the chunk is the newest
// The chunk counts as appended when the last layer was appended. If a layer fails, abort_chunk()
// restores the state before begin_chunk(), but for exact rows that only the previous chunk's own
// queries needed: begin_chunk() drops them.
//
// A sequence and its forks share memory: they are to be changed by one thread at a time (the
// batched append() takes care of itself).
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "kvq/base/cpu.h"
#include "kvq/base/thread_pool.h"
#include "kvq/cache/cache_spec.h"
#include "kvq/cache/page_pool.h"
#include "kvq/cache/view.h"

namespace kvq {

class SequenceState;
struct AppendItem;

struct ByteCount {
  std::int64_t pages = 0;  // packed pages in use (shared ones are counted in every sequence)
  std::int64_t exact = 0;  // exact rows of the tokens that no page holds
  // What this sequence's blocks occupy in the pool: slack, page tables and the newest chunk's rows
  // that pages hold as well included; shared blocks are counted in every sequence.
  std::int64_t allocated = 0;
};

class Sequence {
 public:
  // In host memory; `isa` packs the pages.
  static Result<Sequence> create(std::shared_ptr<const CacheSpec> spec,
                                 std::shared_ptr<PagePool> pool, Isa isa);
  // Wherever the state keeps its caches.
  explicit Sequence(std::unique_ptr<SequenceState> state);
  Sequence(Sequence&&) noexcept;
  Sequence& operator=(Sequence&&) noexcept;
  ~Sequence();

  std::int64_t length() const;  // tokens that every layer holds
  const CacheSpec& spec() const;

  Status begin_chunk(int tokens);
  void abort_chunk();

  // key, value: [tokens of the chunk, kv_heads, head_dim], keys after RoPE. NaN, infinity and
  // numbers beyond fp16's range are errors that name layer, head and token. In host memory only: on
  // a device, the device's own code appends.
  Status append(int layer, const float* key, const float* value);

  // Empty, without a format, where the cache is not in host memory.
  LayerView view(int layer) const;

  // A second sequence with the same content: shares packed pages, copies exact rows.
  Result<Sequence> fork() const;

  // Keeps the first `length` tokens. Exact while no packed page is cut, so always for the last W
  // tokens and for a cut inside the newest chunk (whose rows are still held): pages whose rows are
  // held become exact again. A deeper cut unpacks the kept tokens of the one page it goes through
  // into exact rows: dequantized values, rounded to fp16 and limited to its range, that are packed
  // again when they leave the window.
  // Pages whose rows are no longer held stay packed, even where they reach beyond P(length).
  Status truncate(std::int64_t length);
  // Back to an empty sequence; all memory returns to the pool.
  void reset();

  ByteCount bytes(int layer) const;
  ByteCount bytes() const;  // the sum over layers

  SequenceState& state() const { return *state_; }

 private:
  std::unique_ptr<SequenceState> state_;
};

// One sequence's rows of a batched append.
struct AppendItem {
  Sequence* sequence;
  const float* key;    // [tokens of its chunk, kv_heads, head_dim]
  const float* value;  // likewise
};

// Sequence::append() for a batch of different sequences with the same number of kv heads, kv heads
// and sequences in parallel. On an error some sequences may hold the layer already: abort_chunk()
// all of them.
Status append(std::span<const AppendItem> items, int layer, ThreadPool& threads);

// Beam search: afterwards sequences[i] holds what sequences[source[i]] held. A source used once is
// moved, others are forked. On an error nothing has changed.
Status reorder(std::vector<Sequence>& sequences, std::span<const int> source);

}  // namespace kvq
