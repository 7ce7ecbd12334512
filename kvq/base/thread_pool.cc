// Loops of a decode step last some ten microseconds, so a waiting worker first spins for about that
// long, then sleeps: a sleeping worker costs the next loop a wake-up (about 5 to 50 us), a spinning
// one costs a core.
#include "kvq/base/thread_pool.h"

#include <algorithm>
#include <chrono>

namespace kvq {
namespace {

constexpr std::chrono::microseconds kSpin{100};

void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

// Spins until done() or the spin time is over; true if done.
template <typename Done>
bool spin(const Done& done) {
  const auto end = std::chrono::steady_clock::now() + kSpin;
  do {
    for (int i = 0; i < 64; ++i) {
      if (done()) return true;
      pause();
    }
  } while (std::chrono::steady_clock::now() < end);
  return done();
}

}  // namespace

ThreadPool::ThreadPool(int threads) {
  for (int worker = 1; worker < std::max(threads, 1); ++worker) {
    workers_.emplace_back([this, worker] { work(worker); });
  }
}

ThreadPool::~ThreadPool() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
    generation_.fetch_add(1);
  }
  wake_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void ThreadPool::run_erased(int tasks, Call call, void* context) {
  if (tasks <= 0) return;
  if (workers_.empty() || tasks == 1) {
    for (int task = 0; task < tasks; ++task) call(context, task, 0);
    return;
  }
  call_ = call;
  context_ = context;
  tasks_ = tasks;
  next_.store(0, std::memory_order_relaxed);
  active_.store(static_cast<int>(workers_.size()), std::memory_order_relaxed);
  generation_.fetch_add(1);  // publishes the loop
  if (sleeping_.load() > 0) {
    { const std::lock_guard lock(mutex_); }  // a worker about to sleep holds it: do not miss it
    wake_.notify_all();
  }
  drain(0);
  while (active_.load(std::memory_order_acquire) != 0) {
    if (!spin([this] { return active_.load(std::memory_order_acquire) == 0; })) {
      std::this_thread::yield();
    }
  }
}

void ThreadPool::drain(int worker) {
  for (int task = next_.fetch_add(1); task < tasks_; task = next_.fetch_add(1)) {
    call_(context_, task, worker);
  }
}

void ThreadPool::work(int worker) {
  std::uint64_t seen = 0;
  while (true) {
    const auto changed = [&] { return generation_.load() != seen; };
    if (!spin(changed)) {
      std::unique_lock lock(mutex_);
      sleeping_.fetch_add(1);
      wake_.wait(lock, changed);
      sleeping_.fetch_sub(1);
    }
    if (stop_) return;
    seen = generation_.load();
    drain(worker);
    active_.fetch_sub(1, std::memory_order_release);
  }
}

}  // namespace kvq
