// Memory of the caches on a device: one range, cut into blocks of any sizes by first fit.
// Blocks of one size follow each other and are used again by blocks of that size, so little is lost
// between them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>

#include "kvq/base/cuda/growing_memory.h"
#include "kvq/base/status.h"
#include "kvq/cache/cuda/block_unit.h"
#include "kvq/cache/cuda/device.h"
#include "kvq/cache/page_pool.h"

namespace kvq::cuda {

class DeviceArena;

// Given back to the arena, and to the budget of the pool that paid for it, with its last owner.
class DeviceBlock {
 public:
  DeviceBlock(std::shared_ptr<DeviceArena> arena, std::shared_ptr<PagePool> pool,
              std::int64_t offset, std::int64_t bytes);
  DeviceBlock(const DeviceBlock&) = delete;
  DeviceBlock& operator=(const DeviceBlock&) = delete;
  ~DeviceBlock();

  std::int32_t index() const { return static_cast<std::int32_t>(offset_ / kBlockUnit); }
  std::byte* data() const;
  std::int64_t bytes() const { return bytes_; }

 private:
  std::shared_ptr<DeviceArena> arena_;
  std::shared_ptr<PagePool> pool_;
  std::int64_t offset_;
  std::int64_t bytes_;
};

class DeviceArena : public std::enable_shared_from_this<DeviceArena> {
 public:
  // All memory that is free now, but for what the activations of passes may need.
  static Result<std::shared_ptr<DeviceArena>> create();

  // Nothing yet, more as blocks need it: for a device whose memory others use, too. The device has
  // done its work with the blocks when the arena goes.
  static Result<std::shared_ptr<DeviceArena>> create_growing(int device);

  std::byte* base() const { return growing_ ? growing_->data() : memory_.as(); }
  std::int64_t bytes() const { return bytes_; }
  std::int64_t used_bytes() const { return used_; }

  // Fails if the arena has no such piece, or if the budget of `pool` would be exceeded.
  Result<std::shared_ptr<DeviceBlock>> allocate(std::int64_t bytes,
                                                const std::shared_ptr<PagePool>& pool);

 private:
  friend class DeviceBlock;
  DeviceArena(DeviceArray memory, std::int64_t bytes);
  explicit DeviceArena(std::unique_ptr<GrowingMemory> memory) : growing_(std::move(memory)) {}

  // Room for a block of so many bytes, if the arena grows.
  Status grow(std::int64_t bytes);
  void add_free(std::int64_t offset, std::int64_t bytes);
  void give_back(std::int64_t offset, std::int64_t bytes);

  DeviceArray memory_;
  std::unique_ptr<GrowingMemory> growing_;  // null: `memory_`
  std::int64_t bytes_ = 0;
  std::int64_t used_ = 0;
  std::map<std::int64_t, std::int64_t> free_;  // bytes of every free piece, by offset
};

}  // namespace kvq::cuda
