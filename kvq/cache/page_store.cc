#include "kvq/cache/page_store.h"

#include <algorithm>
#include <bit>

namespace kvq {
namespace {

constexpr std::int64_t kMaxExtentPages = 16;

std::int64_t table_bytes(std::int64_t pages) {
  const std::uint64_t capacity =
      std::bit_ceil(static_cast<std::uint64_t>(std::max<std::int64_t>(pages, 8)));
  return static_cast<std::int64_t>(capacity * sizeof(PageRef));
}

}  // namespace

std::int64_t PageStore::Growth::advance() {
  const auto doubled = static_cast<std::int64_t>(std::bit_floor(static_cast<std::uint64_t>(run)));
  const std::int64_t slots = std::clamp<std::int64_t>(doubled, 1, kMaxExtentPages);
  next += slots;
  run += slots;
  return slots;
}

std::int64_t PageStore::table_capacity() const {
  return table_ ? table_->bytes() / static_cast<std::int64_t>(sizeof(PageRef)) : 0;
}

std::int64_t PageStore::allocated_bytes() const {
  std::int64_t bytes = table_ ? table_->bytes() : 0;
  for (const Extent& extent : extents_) bytes += extent.block->bytes();
  return bytes;
}

PageStore::Growth PageStore::growth() const {
  if (extents_.empty()) return {0, 0};
  const Extent& last = extents_.back();
  if (last.block.use_count() == 1 || last.end() == count_) {
    return {last.end(), last.end() - run_start_};
  }
  return {count_, 0};
}

void PageStore::list_blocks(std::int64_t target, std::vector<std::int64_t>& sizes) {
  if (target <= count_) return;
  if (target > table_capacity()) sizes.push_back(table_bytes(target));
  planned_ = growth();
  Growth growing = planned_;
  while (growing.next < target) sizes.push_back(extent_bytes(growing.advance()));
}

void PageStore::reserve(std::int64_t target, BlockSource& blocks) {
  if (target <= count_) return;
  if (target > table_capacity()) grow_table(blocks.take());
  Growth growing = planned_;
  run_start_ = growing.next - growing.run;
  if (growing.next > count_) enter(extents_.back(), count_, target);
  while (growing.next < target) {
    const std::int64_t first = growing.next;
    extents_.push_back({blocks.take(), first, growing.advance()});
    enter(extents_.back(), first, target);
  }
}

void PageStore::grow_table(std::shared_ptr<PoolBlock> block) {
  const auto old = pages();
  std::copy(old.begin(), old.end(), reinterpret_cast<PageRef*>(block->data()));
  table_ = std::move(block);
}

void PageStore::enter(const Extent& extent, std::int64_t from, std::int64_t to) {
  for (std::int64_t page = from; page < std::min(to, extent.end()); ++page) {
    table()[page] = {extent.block->data() + (page - extent.first) * page_bytes_,
                     extent.slots * page_bytes_};
  }
}

std::byte* PageStore::slot(std::int64_t page, int head) const {
  const PageRef& ref = table()[page];
  return const_cast<std::byte*>(ref.data) + head * ref.head_stride;
}

void PageStore::keep(std::int64_t count) {
  count_ = count;
  run_start_ = std::min(run_start_, count);
  while (!extents_.empty() && extents_.back().first >= count) extents_.pop_back();
}

void PageStore::list_shared_blocks(std::vector<std::int64_t>& sizes) const {
  if (count_ > 0) sizes.push_back(table_bytes(count_));
}

PageStore PageStore::share(BlockSource& blocks) const {
  PageStore copy(page_bytes_, kv_heads_);
  copy.extents_ = extents_;
  copy.run_start_ = run_start_;
  copy.count_ = count_;
  if (count_ > 0) {
    copy.table_ = blocks.take();
    std::copy(table(), table() + count_, copy.table());
  }
  return copy;
}

}  // namespace kvq
