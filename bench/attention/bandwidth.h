// The linear read bandwidth of this machine, and undisturbed threads to measure with.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "kvq/base/thread_pool.h"

namespace kvq {

// Reads a buffer from one end to the other, each thread its share, 256 KiB at a time.
class BandwidthProbe {
 public:
  explicit BandwidthProbe(std::size_t bytes);
  // GB/s (10^9 bytes) of one pass.
  double measure(ThreadPool& threads);

 private:
  std::vector<std::uint64_t> words_;
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
