#include <gtest/gtest.h>

#include <algorithm>

#include "kvq/cache/test_model.h"

namespace kvq {
namespace {

class TruncateTest : public testing::Test {
 protected:
  static constexpr int kSinks = 4;
  static constexpr int kWindow = 64;
  static constexpr std::int64_t kTokens = 1100;
  std::shared_ptr<const CacheSpec> spec_ = make_spec({"k4v2", "k16v8"}, 2, 32, kSinks, kWindow);
  std::shared_ptr<PagePool> pool_ = PagePool::create(0);
  std::vector<Rows> rows_ = make_rows(*spec_, kTokens);

  Sequence make() const { return Sequence::create(spec_, pool_, host_isa()).value(); }

  void expect_same_visible(const Sequence& a, const Sequence& b) const {
    ASSERT_EQ(a.length(), b.length());
    for (int layer = 0; layer < 2; ++layer) {
      ASSERT_EQ(visible_rows(a.view(layer), a.length() - 1),
                visible_rows(b.view(layer), b.length() - 1))
          << "length " << a.length();
    }
  }
};

// Drafted tokens that are taken back leave no trace.
TEST_F(TruncateTest, ACutInsideTheNewestChunkIsExact) {
  for (const std::int64_t before : {0, 100, 300}) {
    for (const std::int64_t cut : {5, 68, 132, 133, 190, 197, 300, 310, 389, 400}) {
      if (cut <= before) continue;
      Sequence sequence = make();
      append_until(sequence, rows_, before, 50);
      append_until(sequence, rows_, 400, 400);
      ASSERT_TRUE(sequence.truncate(cut));
      Sequence straight = make();
      append_until(straight, rows_, cut, 90);
      expect_same_visible(sequence, straight);
      EXPECT_EQ(sequence.bytes().pages, straight.bytes().pages);
      EXPECT_EQ(sequence.bytes().exact, straight.bytes().exact);
      append_until(sequence, rows_, 700, 30);
      append_until(straight, rows_, 700, 30);
      expect_same_visible(sequence, straight);
    }
  }
}

TEST_F(TruncateTest, TheLastWindowCanAlwaysBeTakenBack) {
  for (std::int64_t length = 250; length < 330; length += 3) {
    Sequence sequence = make();
    append_until(sequence, rows_, length, 1);
    const std::size_t pages = sequence.view(0).pages.size();
    ASSERT_TRUE(sequence.truncate(length - kWindow));
    const LayerView view = sequence.view(0);
    EXPECT_EQ(view.pages.size(), pages);
    EXPECT_EQ(view.tail.first, kSinks + 64 * static_cast<std::int64_t>(pages));
    // Every row is either in a page that was there before, or the row as it was appended.
    ModelSequence model(*spec_);
    for (std::int64_t token = 0; token < length; ++token) model.append(rows_, token, 1);
    model.truncate(length - kWindow);
    EXPECT_EQ(model.difference(sequence), "");
    // And the pages made from then on are the same as without the way back.
    append_until(sequence, rows_, 600, 1);
    Sequence straight = make();
    append_until(straight, rows_, 600, 1);
    expect_same_visible(sequence, straight);
  }
}

TEST_F(TruncateTest, ADeepCutKeepsThePagesBeforeItAndUnpacksOne) {
  Sequence whole = make();
  append_until(whole, rows_, 800, 10);
  for (const std::int64_t cut :
       {799, 700, 600, 453, 452, 451, 132, 70, 69, 68, 67, 5, 4, 3, 1, 0}) {
    Sequence sequence = whole.fork().value();
    ASSERT_TRUE(sequence.truncate(cut));
    EXPECT_EQ(sequence.length(), cut);
    for (int layer = 0; layer < 2; ++layer) {
      const LayerView view = sequence.view(layer);
      const auto whole_pages =
          static_cast<std::size_t>(std::max<std::int64_t>(cut - kSinks, 0) / kPageTokens);
      EXPECT_EQ(view.pages.size(), std::min(whole_pages, whole.view(layer).pages.size()));
      for (std::size_t page = 0; page < view.pages.size(); ++page) {
        EXPECT_EQ(view.pages[page].data, whole.view(layer).pages[page].data);
      }
      EXPECT_EQ(view.tail.count, std::max<std::int64_t>(cut - view.tail.first, 0));
      if (cut == 0) continue;
      // Unpacked rows are the dequantized numbers in fp16.
      const auto found = visible_rows(view, cut - 1);
      const auto expected = visible_rows(whole.view(layer), 799);
      for (std::int64_t part_head = 0; part_head < 4; ++part_head) {
        for (std::int64_t i = 0; i < cut * 32; ++i) {
          const float number = found[static_cast<std::size_t>(part_head * cut * 32 + i)];
          const float stored = expected[static_cast<std::size_t>(part_head * 800 * 32 + i)];
          ASSERT_TRUE(number == stored || number == to_float(to_half(stored)));
        }
      }
    }
    append_until(sequence, rows_, cut + 300, 40);
    EXPECT_EQ(sequence.view(0).pages.size(),
              static_cast<std::size_t>(packed_pages(cut + 300, kSinks, kWindow)));
  }
}

TEST_F(TruncateTest, MemoryOfDroppedPagesReturns) {
  Sequence sequence = make();
  append_until(sequence, rows_, 900, 10);
  const std::int64_t used = pool_->used_bytes();
  ASSERT_TRUE(sequence.truncate(200));
  EXPECT_LT(pool_->used_bytes(), used - sequence.bytes().pages);
  EXPECT_EQ(sequence.bytes().allocated, pool_->used_bytes());
  append_until(sequence, rows_, 900, 10);
  EXPECT_EQ(pool_->used_bytes(), used);
}

}  // namespace
}  // namespace kvq
