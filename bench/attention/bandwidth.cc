#include "bench/attention/bandwidth.h"

#include <pthread.h>
#include <sched.h>

#include <atomic>
#include <chrono>
#include <thread>

namespace kvq {
namespace {

constexpr std::size_t kPieceWords = 256 * 1024 / sizeof(std::uint64_t);

// Calls body(worker) once in every thread of the pool.
template <typename Body>
void on_every_thread(ThreadPool& threads, const Body& body) {
  std::atomic<int> arrived{0};
  threads.run(threads.size(), [&](int, int worker) {
    body(worker);
    arrived.fetch_add(1);
    // Holds on to its task until all threads have one.
    while (arrived.load() < threads.size()) std::this_thread::yield();
  });
}

std::uint64_t read_words(const std::uint64_t* words, std::size_t count) {
  std::uint64_t sum = 0;
  for (std::size_t i = 0; i < count; ++i) sum += words[i];
  return sum;
}

}  // namespace

BandwidthProbe::BandwidthProbe(std::size_t bytes) : words_(bytes / sizeof(std::uint64_t), 1) {}

double BandwidthProbe::measure(ThreadPool& threads) {
  const std::size_t pieces = words_.size() / kPieceWords;
  const int parts = threads.size();
  std::atomic<std::uint64_t> sum{0};
  const auto start = std::chrono::steady_clock::now();
  threads.run(parts, [&](int part, int) {
    const std::size_t first = pieces * part / parts;
    const std::size_t end = pieces * (part + 1) / parts;
    std::uint64_t own = 0;
    for (std::size_t piece = first; piece < end; ++piece) {
      own += read_words(words_.data() + piece * kPieceWords, kPieceWords);
    }
    sum.fetch_add(own);
  });
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  sum_ += sum.load();
  const double bytes = static_cast<double>(pieces * kPieceWords * sizeof(std::uint64_t));
  return sum_ == 0 ? 0 : bytes / seconds.count() / 1e9;
}

struct UndisturbedThreads::Saved {
  cpu_set_t processors;
  int policy;
  sched_param parameters;
};

UndisturbedThreads::UndisturbedThreads(ThreadPool& threads)
    : threads_(threads), saved_(threads.size()) {
  cpu_set_t allowed;
  CPU_ZERO(&allowed);
  if (pthread_getaffinity_np(pthread_self(), sizeof(allowed), &allowed) != 0) return;
  if (CPU_COUNT(&allowed) < threads.size()) return;
  std::vector<int> processors;
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (CPU_ISSET(cpu, &allowed)) processors.push_back(cpu);
  }
  std::atomic<int> failures{0};
  on_every_thread(threads, [&](int worker) {
    Saved& saved = saved_[worker];
    pthread_getaffinity_np(pthread_self(), sizeof(saved.processors), &saved.processors);
    pthread_getschedparam(pthread_self(), &saved.policy, &saved.parameters);
    cpu_set_t own;
    CPU_ZERO(&own);
    CPU_SET(processors[worker], &own);
    const sched_param lowest{.sched_priority = 1};
    if (pthread_setaffinity_np(pthread_self(), sizeof(own), &own) != 0 ||
        pthread_setschedparam(pthread_self(), SCHED_FIFO, &lowest) != 0) {
      failures.fetch_add(1);
    }
  });
  active_ = failures.load() == 0;
}

UndisturbedThreads::~UndisturbedThreads() {
  on_every_thread(threads_, [this](int worker) {
    const Saved& saved = saved_[worker];
    pthread_setschedparam(pthread_self(), saved.policy, &saved.parameters);
    pthread_setaffinity_np(pthread_self(), sizeof(saved.processors), &saved.processors);
  });
}

}  // namespace kvq
