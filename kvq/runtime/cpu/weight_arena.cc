#include "kvq/runtime/cpu/weight_arena.h"

#include <sys/mman.h>

#include <algorithm>
#include <new>

namespace kvq {
namespace {

constexpr std::size_t kLine = 64;
constexpr std::size_t kHugePage = std::size_t{2} << 20;
// Pages of a block that stay unused are never touched, so they take no memory.
constexpr std::size_t kBlock = std::size_t{64} << 20;

std::size_t round_up(std::size_t bytes, std::size_t unit) {
  return (bytes + unit - 1) / unit * unit;
}

}  // namespace

void WeightArena::Deleter::operator()(std::byte* block) const {
  ::operator delete (block, std::align_val_t{kHugePage});
}

std::byte* WeightArena::take(std::size_t bytes) {
  bytes = round_up(bytes, kLine);
  if (bytes > left_) {
    const std::size_t size = round_up(std::max(bytes, kBlock), kHugePage);
    next_ = static_cast<std::byte*>(::operator new (size, std::align_val_t{kHugePage}));
    left_ = size;
    blocks_.emplace_back(next_);
#if defined(MADV_HUGEPAGE)
    madvise(next_, size, MADV_HUGEPAGE);  // a hint: without it the pages are small
#endif
  }
  left_ -= bytes;
  std::byte* taken = next_;
  next_ += bytes;
  return taken;
}

}  // namespace kvq
