// Forks, beams, resets: sequences that share pages behave as if they shared nothing.
#include <gtest/gtest.h>

#include <random>

#include "kvq/cache/test_model.h"

namespace kvq {
namespace {

class ForkTest : public testing::Test {
 protected:
  static constexpr std::int64_t kTokens = 1700;
  std::shared_ptr<const CacheSpec> spec_ = make_spec({"k4v2", "k16v3"}, 2, 32, 4, 64);
  std::shared_ptr<PagePool> pool_ = PagePool::create(0);
  std::vector<Rows> rows_ = make_rows(*spec_, kTokens);
  std::vector<Rows> other_rows_ = make_rows(*spec_, kTokens, 77);

  Sequence make() const { return Sequence::create(spec_, pool_, host_isa()).value(); }
};

TEST_F(ForkTest, AForkSharesPagesAndCopiesRows) {
  Sequence first = make();
  append_until(first, rows_, 700, 50);
  const std::int64_t used = pool_->used_bytes();
  Sequence second = first.fork().value();
  const ByteCount bytes = second.bytes();
  EXPECT_EQ(bytes.pages, first.bytes().pages);
  EXPECT_EQ(bytes.exact, first.bytes().exact);
  EXPECT_LT(pool_->used_bytes() - used, bytes.allocated - bytes.pages);
  for (int layer = 0; layer < 2; ++layer) {
    const LayerView a = first.view(layer);
    const LayerView b = second.view(layer);
    ASSERT_EQ(a.pages.size(), 9U);
    for (std::size_t page = 0; page < a.pages.size(); ++page) {
      EXPECT_EQ(a.pages[page].data, b.pages[page].data);
    }
    EXPECT_NE(a.tail.key, b.tail.key);
    EXPECT_NE(a.sinks.key, b.sinks.key);
  }
}

TEST_F(ForkTest, ForksGoSeparateWays) {
  for (const std::int64_t common : {0, 3, 100, 133, 300, 700}) {
    Sequence first = make();
    ModelSequence first_model(*spec_);
    if (common > 0) {
      append_until(first, rows_, common, static_cast<int>(common));
      first_model.append(rows_, 0, static_cast<int>(common));
    }
    Sequence second = first.fork().value();
    ModelSequence second_model = first_model;
    for (int round = 0; round < 6; ++round) {
      const int tokens = 1 + 61 * round;
      ASSERT_TRUE(append_rows(first, rows_, first.length(), tokens));
      first_model.append(rows_, first_model.length(), tokens);
      ASSERT_TRUE(append_rows(second, other_rows_, second.length(), tokens));
      second_model.append(other_rows_, second_model.length(), tokens);
      ASSERT_EQ(first_model.difference(first), "") << common << " common tokens";
      ASSERT_EQ(second_model.difference(second), "") << common << " common tokens";
    }
    { const Sequence gone = std::move(first); }
    ASSERT_EQ(second_model.difference(second), "") << common << " common tokens";
  }
  EXPECT_EQ(pool_->used_bytes(), 0);
}

TEST_F(ForkTest, SharedSlotsAreNotWrittenAgain) {
  Sequence first = make();
  append_until(first, rows_, 700, 700);
  const Sequence second = first.fork().value();
  ModelSequence second_model(*spec_);
  second_model.append(rows_, 0, 700);
  // The first sequence goes back and packs other tokens where the second still reads.
  ASSERT_TRUE(first.truncate(200));
  append_until(first, other_rows_, 900, 100);
  EXPECT_EQ(second_model.difference(second), "");
}

// A shared extent with free slots is left behind, and extents grow from one page again.
TEST_F(ForkTest, ExtentsStartAgainAfterAFork) {
  const auto pages = [](std::int64_t count) { return 4 + 64 + 64 * count + 1; };
  using Runs = std::vector<std::int64_t>;
  Sequence sequence = make();
  append_until(sequence, rows_, pages(9), 64);
  EXPECT_EQ(extent_runs(sequence.view(0)), (Runs{1, 1, 2, 4, 1}));
  {
    const Sequence fork = sequence.fork().value();
    append_until(sequence, rows_, pages(14), 64);
    EXPECT_EQ(extent_runs(sequence.view(0)), (Runs{1, 1, 2, 4, 1, 1, 1, 2, 1}));
  }
  ASSERT_TRUE(sequence.truncate(pages(3)));  // four whole pages lie before the cut
  append_until(sequence, rows_, pages(10), 64);
  EXPECT_EQ(extent_runs(sequence.view(0)), (Runs{1, 1, 2, 1, 1, 2, 2}));
}

TEST_F(ForkTest, BeamsWasteLittleMemory) {
  std::vector<Sequence> beams;
  beams.push_back(make());
  append_until(beams[0], rows_, 1000, 1000);
  append_until(beams[0], rows_, 1001, 1);
  for (int i = 1; i < 4; ++i) beams.push_back(beams[0].fork().value());
  const std::int64_t used = pool_->used_bytes();
  const std::int64_t pages_used = beams[0].bytes().pages;
  for (int round = 0; round < 640; ++round) {
    for (Sequence& beam : beams) append_until(beam, rows_, beam.length() + 1, 1);
    if (round % 10 == 9) {
      ASSERT_TRUE(reorder(beams, std::vector<int>{1, 1, 0, 3}));
    }
  }
  // At worst each beam has pages of its own and as many free slots.
  const std::int64_t more_pages = beams[0].bytes().pages - pages_used;
  EXPECT_LT(pool_->used_bytes() - used, 4 * 2 * more_pages);
}

TEST_F(ForkTest, ReorderMovesAndForks) {
  const std::vector<std::vector<int>> orders{{0, 1, 2, 3}, {3, 2, 1, 0}, {1, 1, 1, 1}, {1, 1, 0, 0},
                                             {2, 0, 2, 3}, {3, 3, 2, 2}, {0, 0, 1, 2}};
  for (const std::vector<int>& order : orders) {
    std::vector<Sequence> sequences;
    std::vector<ModelSequence> models;
    for (int i = 0; i < 4; ++i) {
      sequences.push_back(make());
      models.emplace_back(*spec_);
      const int tokens = 150 + 70 * i;
      append_until(sequences.back(), i % 2 == 0 ? rows_ : other_rows_, tokens, tokens);
      models.back().append(i % 2 == 0 ? rows_ : other_rows_, 0, tokens);
    }
    ASSERT_TRUE(reorder(sequences, order));
    std::vector<ModelSequence> ordered;
    ordered.reserve(4);
    for (const int from : order) ordered.push_back(models[static_cast<std::size_t>(from)]);
    for (std::size_t i = 0; i < 4; ++i) {
      ASSERT_EQ(ordered[i].difference(sequences[i]), "");
      const int tokens = 30 + 50 * static_cast<int>(i);
      ASSERT_TRUE(append_rows(sequences[i], rows_, 500, tokens));
      ordered[i].append(rows_, 500, tokens);
    }
    for (std::size_t i = 0; i < 4; ++i) ASSERT_EQ(ordered[i].difference(sequences[i]), "");
  }
}

TEST_F(ForkTest, ReorderChecksItsSources) {
  std::vector<Sequence> sequences;
  sequences.push_back(make());
  sequences.push_back(make());
  EXPECT_EQ(reorder(sequences, std::vector<int>{0}).error().message,
            "reorder: expected 2 sources, found 1");
  EXPECT_EQ(reorder(sequences, std::vector<int>{0, 2}).error().message,
            "reorder: expected a source from 0 to 1, found 2");
}

TEST_F(ForkTest, ResetReturnsAllMemory) {
  Sequence sequence = make();
  append_until(sequence, rows_, 400, 100);
  ASSERT_TRUE(sequence.begin_chunk(5));
  sequence.reset();
  EXPECT_EQ(pool_->used_bytes(), 0);
  EXPECT_EQ(sequence.bytes().allocated, 0);
  EXPECT_EQ(ModelSequence(*spec_).difference(sequence), "");
  ModelSequence model(*spec_);
  append_until(sequence, other_rows_, 300, 300);
  model.append(other_rows_, 0, 300);
  EXPECT_EQ(model.difference(sequence), "");
}

// Any series of operations leaves what the plain model says.
TEST_F(ForkTest, RandomOperationsAgreeWithTheModel) {
  for (const auto& [sinks, window] : {std::pair{4, 64}, {0, 0}, {70, 128}}) {
    const auto spec = make_spec({"k4v2", "k16v16"}, 2, 16, sinks, window);
    const auto rows = make_rows(*spec, kTokens);
    std::minstd_rand random(static_cast<unsigned>(5 + sinks));
    const auto pick = [&](std::int64_t end) {
      return static_cast<std::int64_t>(random() % static_cast<unsigned long>(end));
    };
    std::vector<Sequence> sequences;
    std::vector<ModelSequence> models;
    for (int i = 0; i < 3; ++i) {
      sequences.push_back(Sequence::create(spec, pool_, host_isa()).value());
      models.emplace_back(*spec);
    }
    for (int step = 0; step < 400; ++step) {
      const auto i = static_cast<std::size_t>(pick(3));
      const std::int64_t length = models[i].length();
      const std::int64_t action = pick(10);
      if (action < 6 && length < 1000) {
        const int tokens = static_cast<int>(1 + pick(action < 3 ? 3 : 200));
        const std::int64_t from = pick(kTokens - tokens);
        ASSERT_TRUE(append_rows(sequences[i], rows, from, tokens));
        models[i].append(rows, from, tokens);
      } else if (action == 6) {
        const auto j = static_cast<std::size_t>(pick(3));
        sequences[j] = sequences[i].fork().value();
        models[j] = ModelSequence(models[i]);
      } else if (action == 7) {
        ASSERT_TRUE(sequences[i].begin_chunk(static_cast<int>(1 + pick(300))));
        ASSERT_TRUE(sequences[i].append(1, rows[1].key.data(), rows[1].value.data()));
        sequences[i].abort_chunk();
        models[i].drop_old_rows();
      } else {
        const std::int64_t cut = pick(3) == 0 ? pick(length + 1) : length - pick(length / 8 + 1);
        ASSERT_TRUE(sequences[i].truncate(cut));
        models[i].truncate(cut);
      }
      for (std::size_t j = 0; j < 3; ++j) {
        ASSERT_EQ(models[j].difference(sequences[j]), "")
            << "sinks " << sinks << ", step " << step << ", action " << action;
      }
    }
  }
  EXPECT_EQ(pool_->used_bytes(), 0);
}

}  // namespace
}  // namespace kvq
