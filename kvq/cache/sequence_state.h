// What a Sequence is made of.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "kvq/cache/layer_store.h"
#include "kvq/cache/sequence.h"

namespace kvq {

struct Sequence::State {
  std::shared_ptr<const CacheSpec> spec;
  std::shared_ptr<PagePool> pool;
  Isa isa;
  std::shared_ptr<const std::vector<PageFormat>> formats;  // of every layer; forks share them
  std::vector<LayerStore> layers;
  std::int64_t length = 0;
  int chunk_tokens = 0;  // of the open chunk, else 0
  int layers_appended = 0;
  std::vector<std::int64_t> block_sizes;  // reused from chunk to chunk

  // Ok if `layer` may be appended.
  Status check_append(int layer) const;
  // Counts a layer as appended, and the chunk after the last one.
  void finish_layer(int layer);
  // What is wrong with the rows of kv head `head`, counted through all items.
  static Error bad_number(std::span<const AppendItem> items, int layer, int head);
  // Without a thread pool: in the calling thread.
  static Status append(std::span<const AppendItem> items, int layer, ThreadPool* threads);
};

}  // namespace kvq
