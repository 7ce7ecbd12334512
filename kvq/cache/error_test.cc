#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "kvq/cache/test_model.h"

namespace kvq {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

std::string message(const Status& status) { return status ? "" : status.error().message; }

class ErrorTest : public testing::Test {
 protected:
  static constexpr int kHeads = 2;
  static constexpr int kHeadDim = 32;
  static constexpr int kWidth = kHeads * kHeadDim;

  std::shared_ptr<const CacheSpec> spec_ =
      make_spec({"k4v2", "k16v4", "k8v8"}, kHeads, kHeadDim, 4, 64);
  std::vector<Rows> rows_ = make_rows(*spec_, 1000);
  std::shared_ptr<PagePool> pool_ = PagePool::create(0);
  Sequence sequence_ = Sequence::create(spec_, pool_, host_isa()).value();
  ModelSequence model_{*spec_};

  void append_both(int tokens) {
    model_.append(rows_, sequence_.length(), tokens);
    append_until(sequence_, rows_, sequence_.length() + tokens, tokens);
  }
  // The current chunk's keys or values of a layer with one number replaced.
  std::vector<float> spoiled(const std::vector<float>& source, int tokens, int token, int head,
                             int channel, float number) const {
    const auto begin = source.begin() + sequence_.length() * kWidth;
    std::vector<float> rows(begin, begin + tokens * kWidth);
    rows[static_cast<std::size_t>(token * kWidth + head * kHeadDim + channel)] = number;
    return rows;
  }
};

TEST_F(ErrorTest, BadNumbersAreNamedAndTheSequenceIsRestored) {
  append_both(150);
  struct Case {
    float number;
    const char* found;
  };
  for (const Case& bad : {Case{kNan, "nan"}, Case{-kNan, "nan"}, Case{kInfinity, "inf"},
                          Case{-kInfinity, "-inf"}, Case{65520, "65520"}, Case{-1e30F, "-1e+30"}}) {
    for (const bool is_key : {true, false}) {
      ASSERT_TRUE(sequence_.begin_chunk(200));
      const auto offset = sequence_.length() * kWidth;
      ASSERT_TRUE(
          sequence_.append(0, rows_[0].key.data() + offset, rows_[0].value.data() + offset));
      const auto changed =
          spoiled(is_key ? rows_[1].key : rows_[1].value, 200, 77, 1, 9, bad.number);
      const Status status =
          sequence_.append(1, is_key ? changed.data() : rows_[1].key.data() + offset,
                           is_key ? rows_[1].value.data() + offset : changed.data());
      EXPECT_EQ(message(status),
                fmt::format("layer 1, kv head 1, token 227: {} channel 9 is {}, expected a finite "
                            "number within +-65504",
                            is_key ? "key" : "value", bad.found));
      sequence_.abort_chunk();
      model_.drop_old_rows();
      ASSERT_EQ(model_.difference(sequence_), "");
    }
  }
  append_both(300);
  EXPECT_EQ(model_.difference(sequence_), "");
}

TEST_F(ErrorTest, TheLargestNumbersAreAccepted) {
  std::vector<float> rows(300 * kWidth, 65519.0F);
  for (std::size_t i = 0; i < rows.size(); i += 3) rows[i] = -65504.0F;
  ASSERT_TRUE(sequence_.begin_chunk(300));
  for (int layer = 0; layer < 3; ++layer) {
    EXPECT_EQ(message(sequence_.append(layer, rows.data(), rows.data())), "");
  }
  EXPECT_EQ(to_float(*sequence_.view(0).tail.key), 65504.0F);
  // Dequantized values may lie outside fp16's range; a cut keeps them inside.
  append_both(1);
  ASSERT_TRUE(sequence_.truncate(100));
  for (int layer = 0; layer < 3; ++layer) {
    for (const float number : visible_rows(sequence_.view(layer), 99)) {
      ASSERT_TRUE(std::isfinite(number));
    }
  }
}

TEST_F(ErrorTest, ABatchNamesTheFirstBadSequence) {
  ThreadPool threads(3);
  std::vector<Sequence> sequences;
  for (int i = 0; i < 3; ++i) {
    sequences.push_back(Sequence::create(spec_, pool_, host_isa()).value());
    ASSERT_TRUE(sequences.back().begin_chunk(300));
  }
  const auto late = spoiled(rows_[0].value, 300, 299, 0, 3, kInfinity);
  const auto early = spoiled(rows_[0].key, 300, 2, 1, 31, kNan);
  const std::vector<AppendItem> items{{&sequences[0], rows_[0].key.data(), rows_[0].value.data()},
                                      {&sequences[1], rows_[0].key.data(), late.data()},
                                      {&sequences[2], early.data(), rows_[0].value.data()}};
  for (int round = 0; round < 10; ++round) {
    EXPECT_EQ(
        message(append(items, 0, threads)),
        "sequence 1: layer 0, kv head 0, token 299: value channel 3 is inf, expected a finite "
        "number within +-65504");
  }
  for (Sequence& sequence : sequences) {
    sequence.abort_chunk();
    EXPECT_EQ(ModelSequence(*spec_).difference(sequence), "");
  }
}

TEST_F(ErrorTest, AFullPoolChangesNothing) {
  append_both(333);
  const std::int64_t used = pool_->used_bytes();
  // The same content in pools with more and more room.
  int refused = 0;
  int accepted = 0;
  for (std::int64_t room = 0; room < 1300000; room += 50000) {
    const auto pool = PagePool::create(used + room);
    Sequence sequence = Sequence::create(spec_, pool, host_isa()).value();
    append_until(sequence, rows_, 333, 333);
    ASSERT_EQ(pool->used_bytes(), used);
    const ByteCount bytes = sequence.bytes();
    const Status status = append_rows(sequence, rows_, 333, 600);
    if (status) {
      ++accepted;
      continue;
    }
    ++refused;
    EXPECT_EQ(pool->used_bytes(), used);
    EXPECT_EQ(sequence.bytes().allocated, bytes.allocated);
    const std::string start = fmt::format(
        "no room for 600 tokens behind token 333: the cache is full: budget {} bytes, {} in use, ",
        used + room, used);
    EXPECT_EQ(message(status).substr(0, start.size()), start);
    ASSERT_EQ(model_.difference(sequence), "");
    // It still takes what fits, and can be used on.
    ASSERT_TRUE(sequence.truncate(300));
    append_until(sequence, rows_, 310, 1);
  }
  EXPECT_GT(refused, 3);
  EXPECT_GT(accepted, 3);
}

TEST_F(ErrorTest, AFullPoolRefusesForksWhole) {
  append_both(333);
  const auto pool = PagePool::create(pool_->used_bytes() + 10000);
  Sequence sequence = Sequence::create(spec_, pool, host_isa()).value();
  append_until(sequence, rows_, 333, 333);
  const std::int64_t used = pool->used_bytes();
  const auto copy = sequence.fork();
  ASSERT_FALSE(copy);
  EXPECT_EQ(copy.error().message.find("no room for a fork of 333 tokens: the cache is full: "), 0U);
  EXPECT_EQ(pool->used_bytes(), used);
  std::vector<Sequence> beams;
  beams.push_back(std::move(sequence));
  beams.push_back(Sequence::create(spec_, pool, host_isa()).value());
  EXPECT_FALSE(reorder(beams, std::vector<int>{0, 0}));
  EXPECT_EQ(model_.difference(beams[0]), "");
  EXPECT_EQ(beams[1].length(), 0);
}

TEST_F(ErrorTest, AbortReturnsWhatTheChunkTook) {
  append_both(200);
  append_both(1);
  const std::int64_t pages = sequence_.bytes().pages;
  ASSERT_TRUE(sequence_.begin_chunk(700));
  const auto offset = sequence_.length() * kWidth;
  ASSERT_TRUE(sequence_.append(0, rows_[0].key.data() + offset, rows_[0].value.data() + offset));
  sequence_.abort_chunk();
  model_.drop_old_rows();
  EXPECT_EQ(model_.difference(sequence_), "");
  EXPECT_EQ(sequence_.bytes().pages, pages);
  EXPECT_EQ(sequence_.bytes().allocated, pool_->used_bytes());
  append_both(1);  // the tail shrinks again
  EXPECT_EQ(model_.difference(sequence_), "");
  Sequence same = Sequence::create(spec_, PagePool::create(0), host_isa()).value();
  append_until(same, rows_, 200, 200);
  append_until(same, rows_, 202, 1);
  EXPECT_LE(sequence_.bytes().allocated, same.bytes().allocated);
}

TEST_F(ErrorTest, CallsOutOfOrderAreErrors) {
  const float* key = rows_[0].key.data();
  const float* value = rows_[0].value.data();
  EXPECT_EQ(message(sequence_.append(0, key, value)), "append: layer 0: no chunk is open");
  EXPECT_EQ(message(sequence_.begin_chunk(0)), "begin_chunk: expected at least one token, found 0");
  ASSERT_TRUE(sequence_.begin_chunk(10));
  EXPECT_EQ(message(sequence_.begin_chunk(1)), "begin_chunk: a chunk is open already");
  EXPECT_EQ(message(sequence_.truncate(0)), "truncate: a chunk is open");
  EXPECT_EQ(sequence_.fork().error().message, "fork: a chunk is open");
  EXPECT_EQ(message(sequence_.append(3, key, value)),
            "append: expected a layer from 0 to 2, found 3");
  EXPECT_EQ(message(sequence_.append(-1, key, value)),
            "append: expected a layer from 0 to 2, found -1");
  ASSERT_TRUE(sequence_.append(0, key, value));
  EXPECT_EQ(message(sequence_.append(0, key, value)), "append: layer 0 holds this chunk already");
  sequence_.abort_chunk();
  sequence_.abort_chunk();
  EXPECT_EQ(sequence_.length(), 0);
  append_both(10);
  EXPECT_EQ(message(sequence_.truncate(11)), "truncate: expected a length from 0 to 10, found 11");
  EXPECT_EQ(message(sequence_.truncate(-1)), "truncate: expected a length from 0 to 10, found -1");
  auto bad = std::make_shared<CacheSpec>(*spec_);
  bad->window = 7;
  EXPECT_FALSE(Sequence::create(bad, pool_, host_isa()));
}

}  // namespace
}  // namespace kvq
