// Loops of a decode step last some ten microseconds, so a waiting worker first spins for about that
// long, then sleeps: a sleeping worker costs the next loop a wake-up (about 5 to 50 us), a spinning
// one costs a core.
//
// The caller waits for tasks, not for workers: one that sleeps, or that the system has put aside on
// a busy machine, takes no task and is not missed. It may come back in the middle of a later loop,
// so a task is claimed by a compare-and-exchange on a ticket that names the loop: it succeeds only
// while that loop runs, and then what was read of the loop before is right. Between loops the
// ticket is closed: its next task is beyond any count.
#include "kvq/base/thread_pool.h"

#include <algorithm>
#include <chrono>

namespace kvq {
namespace {

constexpr std::chrono::microseconds kSpin{100};

constexpr std::uint64_t kClosed = 0xFFFFFFFF;

constexpr std::uint64_t loop_of(std::uint64_t ticket) { return ticket >> 32; }
constexpr std::uint64_t task_of(std::uint64_t ticket) { return ticket & 0xFFFFFFFF; }
constexpr std::uint64_t ticket_of(std::uint64_t loop, std::uint64_t task) {
  return loop << 32 | task;
}

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

ThreadPool::ThreadPool(int threads) : ticket_(ticket_of(0, kClosed)) {
  for (int worker = 1; worker < std::max(threads, 1); ++worker) {
    workers_.emplace_back([this, worker] { work(worker); });
  }
}

ThreadPool::~ThreadPool() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
    ticket_ = ticket_of(loop_of(ticket_) + 1, kClosed);
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
  finished_ = 0;
  ticket_ = ticket_of(loop_of(ticket_) + 1, 0);  // opens the loop
  if (sleeping_ > 0) {
    { const std::lock_guard lock(mutex_); }  // a worker about to sleep holds it: do not miss it
    wake_.notify_all();
  }
  const int left = tasks - drain(0);
  while (!spin([&] { return finished_ == left; })) std::this_thread::yield();
  ticket_ = ticket_of(loop_of(ticket_), kClosed);
}

// Runs tasks of the current loop until none is left; how many it ran.
int ThreadPool::drain(int worker) {
  int ran = 0;
  std::uint64_t ticket = ticket_;
  while (true) {
    const Call call = call_;
    void* const context = context_;
    const std::uint64_t task = task_of(ticket);
    if (task >= static_cast<std::uint64_t>(tasks_)) return ran;
    if (!ticket_.compare_exchange_weak(ticket, ticket + 1)) continue;
    call(context, static_cast<int>(task), worker);
    ++ran;
    ticket = ticket_;
  }
}

void ThreadPool::work(int worker) {
  std::uint64_t seen = 0;
  while (true) {
    const auto changed = [&] { return loop_of(ticket_) != seen; };
    if (!spin(changed)) {
      std::unique_lock lock(mutex_);
      sleeping_.fetch_add(1);
      wake_.wait(lock, changed);
      sleeping_.fetch_sub(1);
    }
    if (stop_) return;
    seen = loop_of(ticket_);
    finished_ += drain(worker);
  }
}

}  // namespace kvq
