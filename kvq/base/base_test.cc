#include <gtest/gtest.h>
#include <unistd.h>

#include <atomic>
#include <cmath>
#include <filesystem>
#include <limits>
#include <numeric>
#include <vector>

#include "kvq/base/checksum.h"
#include "kvq/base/cpu.h"
#include "kvq/base/file.h"
#include "kvq/base/half.h"
#include "kvq/base/thread_pool.h"

namespace kvq {
namespace {

TEST(Half, EveryFiniteValueRoundTrips) {
  for (std::uint32_t bits = 0; bits < 0x10000; ++bits) {
    const Half half{static_cast<std::uint16_t>(bits)};
    const float value = to_float(half);
    if (std::isnan(value)) continue;
    ASSERT_EQ(to_half(value).bits, bits);
  }
}

TEST(Half, RoundsTiesToEvenAndOverflowsToInfinity) {
  EXPECT_EQ(to_half(1.0F + 0x1p-11F).bits, 0x3c00);
  EXPECT_EQ(to_half(1.0F + 3 * 0x1p-11F).bits, 0x3c02);
  EXPECT_EQ(to_half(65519.0F).bits, 0x7bff);
  EXPECT_EQ(to_half(65520.0F).bits, 0x7c00);
  EXPECT_EQ(to_half(-0x1p-24F).bits, 0x8001);
  EXPECT_EQ(to_half(0x1p-25F).bits, 0x0000);
  EXPECT_EQ(to_half(0x1.8p-25F).bits, 0x0001);
  EXPECT_TRUE(std::isnan(to_float(to_half(std::numeric_limits<float>::quiet_NaN()))));
}

TEST(Half, ArraysAgreeWithSingleValues) {
  std::vector<float> source(10007);
  for (int i = 0; i < 10007; ++i) source[i] = std::ldexp(std::sin(0.37F * i), i % 44 - 28);
  for (std::size_t count : {0UL, 1UL, 7UL, 8UL, 9UL, source.size()}) {
    std::vector<Half> halves(count);
    std::vector<float> back(count);
    to_half(source.data(), halves.data(), count);
    to_float(halves.data(), back.data(), count);
    for (std::size_t i = 0; i < count; ++i) {
      ASSERT_EQ(halves[i], to_half(source[i])) << i;
      ASSERT_EQ(back[i], to_float(halves[i])) << i;
    }
  }
}

TEST(BFloat16, RoundsToNearestEven) {
  EXPECT_EQ(to_bfloat16(1.0F + 0x1p-8F).bits, 0x3f80);
  EXPECT_EQ(to_bfloat16(1.0F + 3 * 0x1p-8F).bits, 0x3f82);
  EXPECT_EQ(to_float(to_bfloat16(-2.5F)), -2.5F);
}

TEST(ThreadPool, RunsEveryTaskOnce) {
  for (int threads : {1, 2, 5}) {
    ThreadPool pool(threads);
    for (int tasks : {0, 1, 2, 3, 100, 1000}) {
      std::vector<std::atomic<int>> seen(static_cast<std::size_t>(tasks));
      pool.run(tasks, [&](int task, int worker) {
        ASSERT_LT(worker, pool.size());
        seen[static_cast<std::size_t>(task)]++;
      });
      for (const auto& count : seen) ASSERT_EQ(count, 1);
    }
  }
}

TEST(ThreadPool, WakesSleepingWorkers) {
  ThreadPool pool(3);
  for (int round = 0; round < 20; ++round) {
    ::usleep(500);  // longer than the spin
    std::atomic<int> sum{0};
    pool.run(10, [&](int task, int) { sum += task; });
    ASSERT_EQ(sum, 45);
  }
}

// More threads than processors: workers are put aside anywhere and come back in later loops.
TEST(ThreadPool, LateWorkersDoNotRunTasksOfOtherLoops) {
  ThreadPool pool(8);
  for (int loop = 0; loop < 20000; ++loop) {
    const int tasks = 2 + loop % 7;
    std::atomic<int> sum{0};
    pool.run(tasks, [&, loop](int task, int) {
      ASSERT_LT(task, tasks);
      sum += loop + task;
    });
    ASSERT_EQ(sum, loop * tasks + tasks * (tasks - 1) / 2);
  }
}

TEST(File, WritesWholeOrNotAtAll) {
  const auto folder = std::filesystem::temp_directory_path() / fmt::format("kvq-{}", ::getpid());
  std::filesystem::create_directory(folder);
  const auto path = folder / "out.txt";
  ASSERT_TRUE(write_file(path, "first"));
  ASSERT_TRUE(write_file(path, "second"));
  EXPECT_EQ(read_file(path).value(), "second");
  const auto missing = write_file(folder / "no" / "out.txt", "x");
  ASSERT_FALSE(missing);
  EXPECT_NE(missing.error().message.find("cannot write"), std::string::npos);
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(folder), {}), 1);
  std::filesystem::remove_all(folder);
}

TEST(File, MissingFileIsNamed) {
  const auto file = MappedFile::open("/no/such/file");
  ASSERT_FALSE(file);
  EXPECT_NE(file.error().message.find("/no/such/file: cannot open"), std::string::npos);
}

TEST(Cpu, NamesRoundTrip) {
  for (Isa isa : runnable_isas()) EXPECT_EQ(parse_isa(name(isa)).value(), isa);
  EXPECT_FALSE(parse_isa("sse9"));
}

TEST(Checksum, DependsOnContent) {
  const std::vector<std::byte> zeros(100);
  std::vector<std::byte> other = zeros;
  other[99] = std::byte{1};
  EXPECT_EQ(checksum(zeros), checksum(std::vector<std::byte>(100)));
  EXPECT_NE(checksum(zeros), checksum(other));
}

}  // namespace
}  // namespace kvq
