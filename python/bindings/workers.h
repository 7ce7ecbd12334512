// The threads and attention workspaces that all caches of the process share.
#pragma once

#include <memory>
#include <mutex>
#include <vector>

#include "kvq/attention/attention.h"
#include "kvq/base/status.h"
#include "kvq/base/thread_pool.h"

namespace kvq::python {

// A thread pool runs one loop at a time: whoever uses it holds the lock.
class Workers {
 public:
  // The process's, made at the first call.
  static Workers& instance();

  int thread_count();
  // At least 1.
  void set_thread_count(int count);

  std::unique_lock<std::mutex> lock() { return std::unique_lock(mutex_); }
  // While locked.
  ThreadPool& threads();
  // While locked: attention of this shape, kept from call to call.
  Result<Attention*> attention(const AttentionShape& shape, bool exact_prefill);

 private:
  struct Kept {
    AttentionShape shape;
    bool exact_prefill;
    Attention attention;
  };

  std::mutex mutex_;
  int thread_count_ = 0;  // 0: not chosen, as many as the process may use
  std::unique_ptr<ThreadPool> threads_;
  std::vector<std::unique_ptr<Kept>> attentions_;
};

}  // namespace kvq::python
