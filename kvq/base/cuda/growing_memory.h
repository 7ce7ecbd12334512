// Device memory that grows where it lies: a range of addresses is reserved, and memory is put
// behind its start as it is needed. What is taken from a device that others use too stays close to
// what is used, and no address ever changes.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "kvq/base/status.h"

namespace kvq::cuda {

class GrowingMemory {
 public:
  // On device number `device`, which is current: addresses for all the memory it has.
  static Result<std::unique_ptr<GrowingMemory>> create(int device);
  GrowingMemory(const GrowingMemory&) = delete;
  GrowingMemory& operator=(const GrowingMemory&) = delete;
  // The device has done its work with the memory.
  ~GrowingMemory();

  std::byte* data() const { return std::bit_cast<std::byte*>(start_); }
  std::int64_t bytes() const { return bytes_; }

  // By at least `bytes`, rounded up to what the device hands out.
  Status grow(std::int64_t bytes);

 private:
  struct Piece {
    unsigned long long handle;
    std::size_t bytes;
  };

  GrowingMemory() = default;

  int device_ = 0;
  unsigned long long start_ = 0;
  std::size_t reserved_ = 0;
  std::size_t unit_ = 0;
  std::int64_t bytes_ = 0;
  std::vector<Piece> pieces_;
};

}  // namespace kvq::cuda
