// A sequence's caches in host memory.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "kvq/cache/layer_store.h"
#include "kvq/cache/sequence_state.h"

namespace kvq {

class HostSequence final : public SequenceState {
 public:
  // `spec` is valid; `isa` packs the pages.
  HostSequence(std::shared_ptr<const CacheSpec> spec, std::shared_ptr<PagePool> pool, Isa isa);

  std::int64_t length() const override { return length_; }
  const CacheSpec& spec() const override { return *spec_; }
  Status begin_chunk(int tokens) override;
  void abort_chunk() override;
  Status append(std::span<const AppendItem> items, int layer, ThreadPool* threads) override;
  LayerView view(int layer) const override;
  Result<std::unique_ptr<SequenceState>> fork() const override;
  Status truncate(std::int64_t length) override;
  void reset() override;
  ByteCount bytes(int layer) const override;

 private:
  LayerStore& layer(int index) { return layers_[static_cast<std::size_t>(index)]; }
  const LayerStore& layer(int index) const { return layers_[static_cast<std::size_t>(index)]; }
  // Ok if layer `index` may be appended.
  Status check_append(int index) const;
  // Counts a layer as appended, and the chunk after the last one.
  void finish_layer(int index);

  std::shared_ptr<const CacheSpec> spec_;
  std::shared_ptr<PagePool> pool_;
  Isa isa_;
  std::shared_ptr<const std::vector<PageFormat>> formats_;  // of every layer; forks share them
  std::vector<LayerStore> layers_;
  std::int64_t length_ = 0;
  int chunk_tokens_ = 0;  // of the open chunk, else 0
  int layers_appended_ = 0;
  std::vector<std::int64_t> block_sizes_;  // reused from chunk to chunk
};

}  // namespace kvq
