// A fixed set of threads for short, frequent parallel loops.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <type_traits>
#include <vector>

namespace kvq {

class ThreadPool {
 public:
  // `threads` workers in all, the calling thread included; at least 1.
  explicit ThreadPool(int threads);
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;
  ~ThreadPool();

  int size() const { return static_cast<int>(workers_.size()) + 1; }

  // Calls body(task, worker) for every task in [0, tasks), worker in [0, size()), and returns when
  // all are done. Tasks are handed out in order to whichever thread is free. The caller is worker
  // 0. One loop at a time: not to be called from two threads at once nor from inside a body.
  template <typename Body>
  void run(int tasks, Body&& body) {
    using Plain = std::remove_reference_t<Body>;
    run_erased(
        tasks,
        [](void* context, int task, int worker) { (*static_cast<Plain*>(context))(task, worker); },
        const_cast<void*>(static_cast<const void*>(&body)));
  }

 private:
  using Call = void (*)(void* context, int task, int worker);

  void run_erased(int tasks, Call call, void* context);
  void work(int worker);
  int drain(int worker);

  std::vector<std::thread> workers_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::atomic<int> sleeping_{0};
  std::atomic<bool> stop_{false};

  // The current loop. A ticket is its number (upper half) and its next task (lower half).
  std::atomic<Call> call_{nullptr};
  std::atomic<void*> context_{nullptr};
  std::atomic<int> tasks_{0};
  alignas(64) std::atomic<std::uint64_t> ticket_;
  alignas(64) std::atomic<int> finished_{0};  // tasks that workers other than the caller ran
};

}  // namespace kvq
