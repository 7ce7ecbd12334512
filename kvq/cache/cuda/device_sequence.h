// A sequence's caches in the memory of a CUDA device. The bookkeeping is the host's; bytes are
// written by the passes of the engine that owns the device, so append() is not for this class.
//
//   position   0 ... S-1 | S ...                           | ... length-1
//   pages                | page 0 | page 1 | ..            |             immutable, shared by forks
//   rows        sinks    |             | row block k | k+1 | ..          exact, 64 tokens each
//
// Row block k holds the exact rows of page k's tokens: what leaves the window is packed where it
// lies, and nothing ever moves. A row block that a fork holds too is copied before it is written.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "kvq/cache/cuda/device_arena.h"
#include "kvq/cache/cuda/device_layout.h"
#include "kvq/cache/sequence_state.h"

namespace kvq::cuda {

// What sequences on a device need of it.
struct DeviceMemory {
  std::shared_ptr<Device> device;
  std::shared_ptr<DeviceArena> arena;
};

class DeviceSequence final : public SequenceState {
 public:
  // `layout` is that of `spec`.
  DeviceSequence(std::shared_ptr<const CacheSpec> spec, std::shared_ptr<const DeviceLayout> layout,
                 std::shared_ptr<PagePool> pool, const DeviceMemory& memory);

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

  // For the passes, while a chunk is open. Blocks by number (DeviceBlock::index()).
  const std::shared_ptr<const DeviceLayout>& layout() const { return layout_; }
  int chunk_tokens() const { return chunk_tokens_; }
  // Pages that were packed before the chunk, and those that its last token reads.
  std::int64_t packed_pages() const { return page_count_; }
  std::int64_t target_pages() const { return static_cast<std::int64_t>(pages_.size()); }
  std::int32_t page_block(std::int64_t page) const {
    return page_blocks_[static_cast<std::size_t>(page)];
  }
  std::span<const std::int32_t> page_blocks() const { return page_blocks_; }
  std::int32_t sink_block() const { return sinks_ ? sinks_->index() : 0; }
  // Row blocks of the pages [first_row_block, end_row_block) are there.
  std::int64_t first_row_block() const { return first_row_block_; }
  std::int64_t end_row_block() const {
    return first_row_block_ + static_cast<std::int64_t>(rows_.size());
  }
  // 0 for a page whose rows are gone.
  std::int32_t row_block(std::int64_t page) const {
    return page < first_row_block_ ? 0 : index_of(rows_, page - first_row_block_);
  }
  // Pages that the query at `position` of the chunk reads; it reads the rows behind them exactly.
  std::int64_t pages_read(std::int64_t position) const;

  // All layers of the chunk are written and its pages packed.
  void finish_chunk();
  // The newest `tokens` tokens as an open chunk that is written already, for further queries.
  Status reopen_chunk(int tokens);
  // Lets rows go that only the queries of the newest chunk needed; begin_chunk() does it, too.
  void drop_chunk_rows() { drop_rows(needed_row_block()); }

 private:
  using Blocks = std::vector<std::shared_ptr<DeviceBlock>>;

  static std::int32_t index_of(const Blocks& blocks, std::int64_t at) {
    return blocks[static_cast<std::size_t>(at)]->index();
  }
  std::int64_t page_start(std::int64_t page) const { return spec_->sinks + page * kPageTokens; }
  // Pages whose tokens begin before `length`.
  std::int64_t started_pages(std::int64_t length) const;
  // The first row block that a chunk needs that starts at length().
  std::int64_t needed_row_block() const;
  Result<std::shared_ptr<DeviceBlock>> allocate(std::int64_t bytes) const;
  // A copy of `block`, to be written.
  Result<std::shared_ptr<DeviceBlock>> copy_of(const DeviceBlock& block) const;
  void keep_pages(std::int64_t count);
  // Lets row blocks before that of page `first` go.
  void drop_rows(std::int64_t first);
  Status take_memory(int tokens, Blocks& pages, Blocks& rows, std::shared_ptr<DeviceBlock>& sinks);
  // Writes the first `tokens` tokens of a packed page, dequantized, into a row block.
  Status unpack(const DeviceBlock& page, std::int64_t tokens, const DeviceBlock& rows) const;

  std::shared_ptr<const CacheSpec> spec_;
  std::shared_ptr<const DeviceLayout> layout_;
  std::shared_ptr<PagePool> pool_;
  DeviceMemory memory_;

  std::int64_t length_ = 0;
  std::int64_t page_count_ = 0;  // packed; pages_ holds those of the open chunk too
  Blocks pages_;
  std::vector<std::int32_t> page_blocks_;  // their numbers, which every pass copies
  Blocks rows_;
  std::int64_t first_row_block_ = 0;  // page whose rows rows_[0] holds
  std::shared_ptr<DeviceBlock> sinks_;
  int chunk_tokens_ = 0;  // of the open chunk, else 0
};

}  // namespace kvq::cuda
