// The packed pages of one layer of one sequence.
//
// Pages lie in extents: one pool block of n consecutive page slots for every kv head,
// [kv_heads][n][page_bytes]. Attention streams through a head's pages, and the more of them are
// contiguous the better the memory system does; n therefore doubles from 1 to 16 as a sequence
// grows (1, 1, 2, 4, 8, 16, 16, ...), so that short sequences waste little. Forks share extents.
// A slot of an extent that another sequence holds too is never written: the next page then opens an
// extent of its own, starting again from n = 1.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "kvq/cache/page_pool.h"
#include "kvq/cache/view.h"

namespace kvq {

// Hands out blocks that were allocated together, in the order in which their sizes were listed.
class BlockSource {
 public:
  explicit BlockSource(std::vector<std::shared_ptr<PoolBlock>> blocks)
      : blocks_(std::move(blocks)) {}
  std::shared_ptr<PoolBlock> take() { return std::move(blocks_[next_++]); }

 private:
  std::vector<std::shared_ptr<PoolBlock>> blocks_;
  std::size_t next_ = 0;
};

class PageStore {
 public:
  PageStore(std::int64_t page_bytes, int kv_heads) : page_bytes_(page_bytes), kv_heads_(kv_heads) {}

  std::int64_t count() const { return count_; }
  std::span<const PageRef> pages() const { return {table(), static_cast<std::size_t>(count_)}; }
  std::int64_t used_bytes() const { return count_ * kv_heads_ * page_bytes_; }
  std::int64_t allocated_bytes() const;

  // Slots for the pages [count, target): first the sizes of the blocks that reserve() will take.
  void list_blocks(std::int64_t target, std::vector<std::int64_t>& sizes);
  void reserve(std::int64_t target, BlockSource& blocks);
  // A reserved page, to be written.
  std::byte* slot(std::int64_t page, int head) const;
  // Pages up to `count`, all reserved and written, become visible.
  void publish(std::int64_t count) { count_ = count; }

  // Keeps the first `count` pages; later ones, reserved ones too, and their extents are let go.
  void keep(std::int64_t count);

  // A copy that shares the extents, for a store without reserved pages: first the sizes of the
  // blocks that share() will take.
  void list_shared_blocks(std::vector<std::int64_t>& sizes) const;
  PageStore share(BlockSource& blocks) const;

 private:
  struct Extent {
    std::shared_ptr<PoolBlock> block;
    std::int64_t first;  // page in slot 0
    std::int64_t slots;  // of every kv head
    std::int64_t end() const { return first + slots; }
  };
  // Where the next extent starts, and how many pages in a row before it lie in extents that
  // followed one another without a break: its size depends on them.
  struct Growth {
    std::int64_t next;
    std::int64_t run;
    std::int64_t advance();  // adds an extent and returns its slots
  };

  Growth growth() const;
  PageRef* table() const { return table_ ? reinterpret_cast<PageRef*>(table_->data()) : nullptr; }
  std::int64_t table_capacity() const;
  std::int64_t extent_bytes(std::int64_t slots) const { return slots * kv_heads_ * page_bytes_; }
  void grow_table(std::shared_ptr<PoolBlock> block);
  // Enters the pages [from, to), as far as `extent` has slots for them, into the table.
  void enter(const Extent& extent, std::int64_t from, std::int64_t to);

  std::int64_t page_bytes_;
  int kv_heads_;
  std::int64_t count_ = 0;
  std::int64_t run_start_ = 0;        // first page of the current run of extents
  Growth planned_{0, 0};              // growth() when blocks were listed, before other forks let go
  std::vector<Extent> extents_;       // extent i holds pages up to the first one of extent i + 1
  std::shared_ptr<PoolBlock> table_;  // PageRef of every page, room for later ones
};

}  // namespace kvq
