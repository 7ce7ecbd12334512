// Times packing on a CUDA device.
//
// Reads cases from standard input, a line each: SPEC PAGES KV_HEADS HEAD_DIM, and prints a line of
// JSON for each. A graph of launches that rotate over at least 300 MB of rows and pages (more than
// twice any L2), and one of launches that find nothing to do.
#include <fmt/format.h>

#include <cmath>
#include <iostream>
#include <memory>
#include <random>
#include <sstream>
#include <string>

#include "bench/gpu/timing.h"
#include "kvq/base/half.h"
#include "kvq/codec/cuda/packer.h"

namespace kvq::cuda {
namespace {

constexpr std::size_t kRotatedBytes = std::size_t{300} << 20;
constexpr int kReplays = 30;
constexpr int kMostLaunches = 64;

struct Case {
  std::string spec;
  int pages;  // of all kv heads
  int kv_heads;
  int head_dim;
};

// What one launch reads and writes.
struct Input {
  Input(const Case& test, const PageFormat& format, const std::vector<std::uint16_t>& numbers)
      : rows(2 * row_bytes(test)),
        pages(std::size_t(test.pages) * test.kv_heads * format.page_bytes),
        jobs(test.pages * sizeof(PackJob)) {
    const std::size_t job_numbers = row_bytes(test) / test.pages / 2;
    for (std::size_t at = 0; at < 2 * row_bytes(test); at += 2 * numbers.size()) {
      const std::size_t bytes = std::min(2 * numbers.size(), 2 * row_bytes(test) - at);
      check(cudaMemcpy(rows.as<std::byte>() + at, numbers.data(), bytes, cudaMemcpyHostToDevice));
    }
    std::vector<PackJob> list;
    list.reserve(test.pages);
    for (std::size_t i = 0; i < std::size_t(test.pages); ++i) {
      list.push_back({rows.as<std::uint16_t>() + 2 * i * job_numbers,
                      rows.as<std::uint16_t>() + (2 * i + 1) * job_numbers,
                      pages.as<std::byte>() + i * test.kv_heads * format.page_bytes});
    }
    jobs.set(list);
  }

  // Of the keys or the values.
  static std::size_t row_bytes(const Case& test) {
    return std::size_t(test.pages) * test.kv_heads * kPageTokens * test.head_dim * 2;
  }

  Memory rows;
  Memory pages;
  Memory jobs;
};

Status measure(const Case& test) {
  KVQ_ASSIGN_OR_RETURN(const LayerSpec spec, parse_layer_spec(test.spec));
  KVQ_ASSIGN_OR_RETURN(const PageFormat format, PageFormat::create(spec, test.head_dim));
  KVQ_ASSIGN_OR_RETURN(const Packer packer, Packer::create(format, test.kv_heads));
  std::mt19937_64 engine(1);
  std::normal_distribution<float> normal;
  std::vector<std::uint16_t> numbers(1 << 20);
  for (std::uint16_t& number : numbers) number = to_half(normal(engine)).bits;

  const std::size_t bytes =
      2 * Input::row_bytes(test) + std::size_t(test.pages) * test.kv_heads * format.page_bytes;
  const int launches =
      static_cast<int>(std::min<std::size_t>(kMostLaunches, kRotatedBytes / bytes + 2));
  std::vector<std::unique_ptr<Input>> inputs;
  inputs.reserve(launches);
  for (int i = 0; i < launches; ++i) {
    inputs.push_back(std::make_unique<Input>(test, format, numbers));
  }
  const Memory no_jobs(sizeof(std::int32_t));
  no_jobs.set<std::int32_t>({0});

  const Stream stream;
  Status status;
  const auto record = [&](const std::int32_t* count) {
    for (int i = 0; i < launches && status; ++i) {
      status = packer.run(
          {.jobs = inputs[i]->jobs.as<PackJob>(), .job_count = count, .max_jobs = test.pages},
          stream.get());
    }
  };
  const Graph packing(stream, [&] { record(nullptr); });
  const Graph idle(stream, [&] { record(no_jobs.as<std::int32_t>()); });
  KVQ_RETURN_IF_ERROR(status);
  const std::vector<double> times = packing.time(stream, kReplays);
  const std::vector<double> idle_times = idle.time(stream, kReplays);
  const double median = times[kReplays / 2] / launches;
  fmt::print(R"({{"spec": "{}", "shape": [{}, {}, {}], "microseconds": {:.2f}, "p10": {:.2f}, )"
             R"("p90": {:.2f}, "idle_microseconds": {:.2f}, "bytes": {}, )"
             R"("gigabytes_per_second": {:.0f}}})"
             "\n",
             test.spec, test.pages, test.kv_heads, test.head_dim, median,
             times[kReplays / 10] / launches, times[kReplays * 9 / 10] / launches,
             idle_times[kReplays / 2] / launches, bytes,
             static_cast<double>(bytes) / median * 1e-3);
  std::fflush(stdout);
  return {};
}

int run() {
  std::string line;
  while (std::getline(std::cin, line)) {
    std::istringstream words(line);
    Case test{};
    if (!(words >> test.spec >> test.pages >> test.kv_heads >> test.head_dim) || test.pages < 1) {
      std::fprintf(stderr, "expected SPEC PAGES KV_HEADS HEAD_DIM, found: %s\n", line.c_str());
      return 2;
    }
    if (const Status status = measure(test); !status) {
      std::fprintf(stderr, "%s: %s\n", line.c_str(), status.error().message.c_str());
      return 1;
    }
  }
  return 0;
}

}  // namespace
}  // namespace kvq::cuda

int main() { return kvq::cuda::run(); }
