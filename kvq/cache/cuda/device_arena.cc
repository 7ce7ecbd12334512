#include "kvq/cache/cuda/device_arena.h"

#include <algorithm>
#include <utility>

namespace kvq::cuda {
namespace {

// Left free for activations, logits and recordings: an eighth, within limits.
constexpr std::int64_t kLeastReserve = std::int64_t{256} << 20;
constexpr std::int64_t kMostReserve = std::int64_t{2} << 30;

// An arena grows by an eighth, at most by this.
constexpr std::int64_t kMostGrowth = std::int64_t{1} << 30;

}  // namespace

DeviceBlock::DeviceBlock(std::shared_ptr<DeviceArena> arena, std::shared_ptr<PagePool> pool,
                         std::int64_t offset, std::int64_t bytes)
    : arena_(std::move(arena)), pool_(std::move(pool)), offset_(offset), bytes_(bytes) {}

DeviceBlock::~DeviceBlock() {
  arena_->give_back(offset_, bytes_);
  pool_->release(bytes_);
}

std::byte* DeviceBlock::data() const { return arena_->base() + offset_; }

DeviceArena::DeviceArena(DeviceArray memory, std::int64_t bytes)
    : memory_(std::move(memory)), bytes_(bytes), free_{{0, bytes}} {}

Result<std::shared_ptr<DeviceArena>> DeviceArena::create() {
  std::size_t available = 0;
  std::size_t total = 0;
  KVQ_RETURN_IF_ERROR(check(cudaMemGetInfo(&available, &total), "free memory"));
  const auto room = static_cast<std::int64_t>(available);
  const std::int64_t reserve = std::clamp(room / 8, kLeastReserve, kMostReserve);
  const std::int64_t bytes = (room - reserve) / kBlockUnit * kBlockUnit;
  if (bytes <= 0) {
    return fail(
        "the device has no memory for caches: {} of {} bytes are free, {} of them for "
        "activations",
        available, total, reserve);
  }
  KVQ_ASSIGN_OR_RETURN(DeviceArray memory, DeviceArray::create(static_cast<std::size_t>(bytes)));
  return std::shared_ptr<DeviceArena>(new DeviceArena(std::move(memory), bytes));
}

Result<std::shared_ptr<DeviceBlock>> DeviceArena::allocate(std::int64_t bytes,
                                                           const std::shared_ptr<PagePool>& pool) {
  bytes = (bytes + kBlockUnit - 1) / kBlockUnit * kBlockUnit;
  const auto first_fit = [&] {
    return std::ranges::find_if(free_, [&](const auto& piece) { return piece.second >= bytes; });
  };
  auto found = first_fit();
  if (found == free_.end() && growing_ != nullptr) {
    KVQ_RETURN_IF_ERROR(grow(bytes));
    found = first_fit();
  }
  if (found == free_.end()) {
    return fail("the device's memory for caches is full: {} bytes, {} in use, {} more requested",
                bytes_, used_, bytes);
  }
  KVQ_RETURN_IF_ERROR(pool->claim(bytes));
  const auto [offset, size] = *found;
  free_.erase(found);
  if (size > bytes) free_.emplace(offset + bytes, size - bytes);
  used_ += bytes;
  return std::make_shared<DeviceBlock>(shared_from_this(), pool, offset, bytes);
}

Result<std::shared_ptr<DeviceArena>> DeviceArena::create_growing(int device) {
  KVQ_ASSIGN_OR_RETURN(auto memory, GrowingMemory::create(device));
  return std::shared_ptr<DeviceArena>(new DeviceArena(std::move(memory)));
}

Status DeviceArena::grow(std::int64_t bytes) {
  const std::int64_t before = growing_->bytes();
  Status status = growing_->grow(std::max(bytes, std::min(before / 8, kMostGrowth)));
  if (!status) status = growing_->grow(bytes);
  KVQ_RETURN_IF_ERROR(status);
  bytes_ = growing_->bytes();
  add_free(before, bytes_ - before);
  return {};
}

void DeviceArena::give_back(std::int64_t offset, std::int64_t bytes) {
  used_ -= bytes;
  add_free(offset, bytes);
}

void DeviceArena::add_free(std::int64_t offset, std::int64_t bytes) {
  auto next = free_.lower_bound(offset);
  if (next != free_.end() && offset + bytes == next->first) {
    bytes += next->second;
    next = free_.erase(next);
  }
  if (next != free_.begin()) {
    const auto before = std::prev(next);
    if (before->first + before->second == offset) {
      before->second += bytes;
      return;
    }
  }
  free_.emplace(offset, bytes);
}

}  // namespace kvq::cuda
