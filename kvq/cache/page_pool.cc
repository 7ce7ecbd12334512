#include "kvq/cache/page_pool.h"

#include <sys/mman.h>

#include <cstdlib>
#include <utility>

#include "kvq/codec/page_format.h"

namespace kvq {
namespace {

constexpr std::int64_t kAlignment = kPageAlignment;
constexpr std::int64_t kHugePage = std::int64_t{2} << 20;

std::int64_t rounded(std::int64_t bytes) {
  return (bytes + kAlignment - 1) / kAlignment * kAlignment;
}

// Null if the system has no more memory.
std::byte* allocate_aligned(std::int64_t bytes) {
  const bool large = bytes >= kHugePage;
  void* data = nullptr;
  const auto alignment = static_cast<std::size_t>(large ? kHugePage : kAlignment);
  if (::posix_memalign(&data, alignment, static_cast<std::size_t>(bytes)) != 0) return nullptr;
  // Advice only: where huge pages are off, small ones do.
  if (large)
    ::madvise(data, static_cast<std::size_t>(bytes / kHugePage * kHugePage), MADV_HUGEPAGE);
  return static_cast<std::byte*>(data);
}

}  // namespace

PoolBlock::PoolBlock(std::shared_ptr<PagePool> pool, std::byte* data, std::int64_t bytes)
    : pool_(std::move(pool)), data_(data), bytes_(bytes) {}

PoolBlock::~PoolBlock() {
  std::free(data_);
  pool_->used_.fetch_sub(bytes_);
}

std::shared_ptr<PagePool> PagePool::create(std::int64_t budget) {
  return std::shared_ptr<PagePool>(new PagePool(budget));
}

Status PagePool::claim(std::int64_t bytes) {
  std::int64_t used = used_.load();
  do {
    if (budget_ > 0 && bytes > budget_ - used) {
      return fail("the cache is full: budget {} bytes, {} in use, {} more requested", budget_, used,
                  bytes);
    }
  } while (!used_.compare_exchange_weak(used, used + bytes));
  return {};
}

Result<std::vector<std::shared_ptr<PoolBlock>>> PagePool::allocate_all(
    std::span<const std::int64_t> sizes) {
  std::vector<std::shared_ptr<PoolBlock>> blocks;
  if (sizes.empty()) return blocks;
  std::int64_t total = 0;
  for (const std::int64_t size : sizes) total += rounded(size);
  KVQ_RETURN_IF_ERROR(claim(total));
  blocks.reserve(sizes.size());
  std::int64_t unowned = total;  // claimed bytes that no block gives back
  for (const std::int64_t size : sizes) {
    std::byte* data = allocate_aligned(rounded(size));
    if (data == nullptr) {
      used_.fetch_sub(unowned);
      return fail("the system has no memory for {} bytes of cache ({} in use)", total,
                  used_bytes() - (total - unowned));
    }
    blocks.emplace_back(new PoolBlock(shared_from_this(), data, rounded(size)));
    unowned -= rounded(size);
  }
  return blocks;
}

Result<std::shared_ptr<PoolBlock>> PagePool::allocate(std::int64_t bytes) {
  KVQ_ASSIGN_OR_RETURN(auto blocks, allocate_all({&bytes, 1}));
  return std::move(blocks.front());
}

}  // namespace kvq
