#include "kvq/cache/page_pool.h"

#include <gtest/gtest.h>

#include <array>
#include <cstring>

#include "kvq/base/thread_pool.h"

namespace kvq {
namespace {

TEST(PagePool, BlocksAreAlignedAndCounted) {
  const auto pool = PagePool::create(0);
  std::int64_t used = 0;
  std::vector<std::shared_ptr<PoolBlock>> blocks;
  for (const std::int64_t bytes : {1L, 128L, 129L, 7168L, (2L << 20) - 1, 2L << 20, 5L << 20}) {
    blocks.push_back(pool->allocate(bytes).value());
    const PoolBlock& block = *blocks.back();
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(block.data()) % 128, 0U);
    if (bytes >= 2L << 20) {
      EXPECT_EQ(reinterpret_cast<std::uintptr_t>(block.data()) % (2U << 20), 0U);
    }
    EXPECT_EQ(block.bytes(), (bytes + 127) / 128 * 128);
    std::memset(block.data(), 1, static_cast<std::size_t>(block.bytes()));
    used += block.bytes();
    EXPECT_EQ(pool->used_bytes(), used);
  }
  blocks.clear();
  EXPECT_EQ(pool->used_bytes(), 0);
}

TEST(PagePool, BudgetIsKept) {
  const auto pool = PagePool::create(1024);
  EXPECT_EQ(pool->budget(), 1024);
  auto first = pool->allocate(600).value();
  EXPECT_EQ(pool->used_bytes(), 640);
  const auto second = pool->allocate(500);
  ASSERT_FALSE(second);
  EXPECT_EQ(second.error().message,
            "the cache is full: budget 1024 bytes, 640 in use, 512 more requested");
  EXPECT_EQ(pool->used_bytes(), 640);
  EXPECT_TRUE(pool->allocate(384));
  first.reset();
  EXPECT_TRUE(pool->allocate(1024));
  EXPECT_EQ(pool->used_bytes(), 0);
}

TEST(PagePool, AllBlocksOrNone) {
  const auto pool = PagePool::create(1024);
  const std::array<std::int64_t, 3> sizes{128, 512, 512};
  const auto all = pool->allocate_all(sizes);
  ASSERT_FALSE(all);
  EXPECT_EQ(all.error().message,
            "the cache is full: budget 1024 bytes, 0 in use, 1152 more requested");
  EXPECT_EQ(pool->used_bytes(), 0);
  const auto two = pool->allocate_all(std::span(sizes).first(2)).value();
  EXPECT_EQ(two.size(), 2U);
  EXPECT_EQ(two[1]->bytes(), 512);
  EXPECT_EQ(pool->used_bytes(), 640);
}

TEST(PagePool, ASystemWithoutMemoryIsAnError) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "sanitizers end the program where an allocation fails";
#endif
  const auto pool = PagePool::create(0);
  const std::array<std::int64_t, 2> sizes{128, std::int64_t{1} << 60};
  const auto all = pool->allocate_all(sizes);
  ASSERT_FALSE(all);
  EXPECT_EQ(all.error().message,
            "the system has no memory for 1152921504606847104 bytes of cache (0 in use)");
  EXPECT_EQ(pool->used_bytes(), 0);
}

TEST(PagePool, BlocksOutliveTheHandleOfThePool) {
  auto pool = PagePool::create(0);
  const auto block = pool->allocate(128).value();
  pool.reset();
  std::memset(block->data(), 1, 128);
}

TEST(PagePool, ManyThreadsStayInsideTheBudget) {
  const auto pool = PagePool::create(16 * 128);
  ThreadPool threads(3);
  threads.run(300, [&](int, int) {
    std::vector<std::shared_ptr<PoolBlock>> mine;
    for (int i = 0; i < 8; ++i) {
      if (auto block = pool->allocate(128)) mine.push_back(*std::move(block));
      EXPECT_LE(pool->used_bytes(), pool->budget());
    }
  });
  EXPECT_EQ(pool->used_bytes(), 0);
  std::vector<std::int64_t> sizes(17, 128);
  EXPECT_FALSE(pool->allocate_all(sizes));
}

}  // namespace
}  // namespace kvq
