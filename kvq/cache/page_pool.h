// Memory of a cache: extents of packed pages and buffers of exact rows, under one byte budget.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "kvq/base/status.h"

namespace kvq {

class PagePool;

// A piece of pool memory, 128-byte aligned, returned to the pool's budget when the last owner lets
// go. Shared by std::shared_ptr: its use count is the reference count of the pages inside.
class PoolBlock {
 public:
  ~PoolBlock();
  PoolBlock(const PoolBlock&) = delete;
  PoolBlock& operator=(const PoolBlock&) = delete;

  std::byte* data() const { return data_; }
  std::int64_t bytes() const { return bytes_; }

 private:
  friend class PagePool;
  PoolBlock(std::shared_ptr<PagePool> pool, std::byte* data, std::int64_t bytes);

  std::shared_ptr<PagePool> pool_;
  std::byte* data_;
  std::int64_t bytes_;
};

// Thread safe.
class PagePool : public std::enable_shared_from_this<PagePool> {
 public:
  // `budget` bytes may be allocated at a time; 0 = no limit.
  static std::shared_ptr<PagePool> create(std::int64_t budget);

  // Fails, with budget, use and request in the message, if the budget would be exceeded. The size
  // is rounded up to a multiple of 128 bytes. The content is uninitialized.
  Result<std::shared_ptr<PoolBlock>> allocate(std::int64_t bytes);
  // One block for each size, in bytes: all of them or none.
  Result<std::vector<std::shared_ptr<PoolBlock>>> allocate_all(std::span<const std::int64_t> sizes);

  // Counts `bytes` that the caller has in other memory, a device's, until they are released.
  Status claim(std::int64_t bytes);
  void release(std::int64_t bytes) { used_.fetch_sub(bytes); }

  std::int64_t budget() const { return budget_; }
  std::int64_t used_bytes() const { return used_; }

 private:
  friend class PoolBlock;
  explicit PagePool(std::int64_t budget) : budget_(budget) {}

  const std::int64_t budget_;
  std::atomic<std::int64_t> used_{0};
};

}  // namespace kvq
