// The linear read bandwidth of this machine, and undisturbed threads to measure with.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "kvq/base/status.h"
#include "kvq/base/thread_pool.h"
#include "kvq/cache/page_pool.h"

namespace kvq {

// Reads a buffer from one end to the other, each thread its share. The buffer is pool memory as
// pages are (huge pages where the system has them), and lines are prefetched: without either the
// figure is a third too low, and what is measured against it looks better than it is.
class BandwidthProbe {
 public:
  static Result<BandwidthProbe> create(std::size_t bytes);
  // GB/s (10^9 bytes) of one pass.
  double measure(ThreadPool& threads);

 private:
  explicit BandwidthProbe(std::shared_ptr<PoolBlock> block) : block_(std::move(block)) {}

  std::shared_ptr<PoolBlock> block_;
  std::uint64_t sum_ = 0;  // so that the reads are needed
};

// While it lives, every thread of the pool is bound to a processor of its own and has real-time
// priority: other work of the machine does not interrupt a measurement. Undone at the end.
class UndisturbedThreads {
 public:
  explicit UndisturbedThreads(ThreadPool& threads);
  UndisturbedThreads(const UndisturbedThreads&) = delete;
  UndisturbedThreads& operator=(const UndisturbedThreads&) = delete;
  ~UndisturbedThreads();

  bool active() const { return active_; }  // false where the system does not allow it

 private:
  struct Saved;
  ThreadPool& threads_;
  std::vector<Saved> saved_;
  bool active_ = false;
};

}  // namespace kvq
