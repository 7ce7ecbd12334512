// The way tokens are cut into chunks leaves no trace: same pages, same rows for every query.
#include <gtest/gtest.h>

#include <algorithm>

#include "kvq/cache/test_model.h"
#include "kvq/codec/pack.h"

namespace kvq {
namespace {

const std::vector<std::string> kLayers{"k4v2", "k16v16", "k16v4", "k8:channel:g32:affine,v3:token"};

struct Shape {
  int head_dim;
  int sinks;
  int window;
};

class ChunkTest : public testing::TestWithParam<Shape> {
 protected:
  std::shared_ptr<const CacheSpec> spec_ =
      make_spec(kLayers, 2, GetParam().head_dim, GetParam().sinks, GetParam().window);
  std::shared_ptr<PagePool> pool_ = PagePool::create(0);
  static constexpr std::int64_t kTokens = 611;
  std::vector<Rows> rows_ = make_rows(*spec_, kTokens);

  Sequence make() const { return Sequence::create(spec_, pool_, host_isa()).value(); }
};

// What a query sees is fixed by the pages below P(p) and the rows from P(p) on: `view` must hold
// both for every query of the chunk [first, view.length).
void expect_complete(const LayerView& view, std::int64_t first) {
  const std::int64_t pages_end =
      view.sink_tokens + kPageTokens * static_cast<std::int64_t>(view.pages.size());
  EXPECT_EQ(pages_end, packed_boundary(view.length - 1, view.sink_tokens, view.window));
  EXPECT_EQ(view.tail.first, packed_boundary(first, view.sink_tokens, view.window));
  EXPECT_EQ(view.tail.count, std::max<std::int64_t>(view.length - view.tail.first, 0));
  EXPECT_EQ(view.sinks.count, std::min<std::int64_t>(view.sink_tokens, view.length));
}

TEST_P(ChunkTest, EveryChunkingLeavesTheSamePagesAndRows) {
  for (const int chunk : {1, 7, 64, 500, static_cast<int>(kTokens)}) {
    Sequence sequence = make();
    ModelSequence model(*spec_);
    while (sequence.length() < kTokens) {
      const std::int64_t first = sequence.length();
      const int tokens = static_cast<int>(std::min<std::int64_t>(chunk, kTokens - first));
      ASSERT_TRUE(append_rows(sequence, rows_, first, tokens));
      model.append(rows_, first, tokens);
      for (int layer = 0; layer < 4; ++layer) expect_complete(sequence.view(layer), first);
      // Content: at every step in the beginning and around each page, at the end.
      const bool page_event = (first - GetParam().sinks) % kPageTokens < 3;
      if (chunk > 1 || page_event || sequence.length() == kTokens) {
        ASSERT_EQ(model.difference(sequence), "") << "chunk " << chunk << ", token " << first;
      }
    }
  }
}

TEST_P(ChunkTest, QueriesReadTheSameNumbers) {
  Sequence whole = make();
  append_until(whole, rows_, kTokens, kTokens);
  for (const int chunk : {1, 7, 64, 500}) {
    Sequence sequence = make();
    while (sequence.length() < kTokens) {
      const std::int64_t end = std::min<std::int64_t>(sequence.length() + chunk, kTokens);
      const std::int64_t position = (sequence.length() + end) / 2;
      append_until(sequence, rows_, end, chunk);
      if (chunk == 1 && position % 97 != 0) continue;
      for (int layer = 0; layer < 4; layer += 2) {
        ASSERT_EQ(visible_rows(sequence.view(layer), position),
                  visible_rows(whole.view(layer), position))
            << "chunk " << chunk << ", position " << position;
      }
    }
  }
}

TEST_P(ChunkTest, BytesAreWhatTheSpecSaysAndWhatThePoolCounts) {
  for (const int chunk : {1, 64, 500}) {
    Sequence sequence = make();
    const std::int64_t before = pool_->used_bytes();
    EXPECT_EQ(sequence.bytes().allocated, 0);
    while (sequence.length() < kTokens) {
      append_until(sequence, rows_, std::min<std::int64_t>(sequence.length() + chunk, kTokens),
                   chunk);
      const ByteCount bytes = sequence.bytes();
      ASSERT_EQ(bytes.pages + bytes.exact, cache_bytes(*spec_, sequence.length()));
      ASSERT_EQ(bytes.allocated, pool_->used_bytes() - before);
      ASSERT_GE(bytes.allocated, bytes.pages + bytes.exact);
    }
    ByteCount sum;
    for (int layer = 0; layer < 4; ++layer) {
      sum.pages += sequence.bytes(layer).pages;
      sum.allocated += sequence.bytes(layer).allocated;
    }
    EXPECT_EQ(sum.pages, sequence.bytes().pages);
    EXPECT_EQ(sum.allocated, sequence.bytes().allocated);
  }
  EXPECT_EQ(pool_->used_bytes(), 0);
}

INSTANTIATE_TEST_SUITE_P(Shapes, ChunkTest,
                         testing::Values(Shape{32, 0, 0}, Shape{32, 0, 64}, Shape{32, 4, 64},
                                         Shape{32, 4, 128}, Shape{32, 70, 0}, Shape{32, 70, 128},
                                         Shape{80, 4, 64}),
                         [](const auto& shape) {
                           return fmt::format("dim{}_sinks{}_window{}", shape.param.head_dim,
                                              shape.param.sinks, shape.param.window);
                         });

TEST(Chunk, LayersProgressOneAfterAnother) {
  const auto spec = make_spec({"k4v2", "k4v2"}, 1, 32, 4, 64);
  const auto rows = make_rows(*spec, 300);
  Sequence sequence = Sequence::create(spec, PagePool::create(0), host_isa()).value();
  ASSERT_TRUE(sequence.begin_chunk(300));
  ASSERT_TRUE(sequence.append(0, rows[0].key.data(), rows[0].value.data()));
  EXPECT_EQ(sequence.view(0).length, 300);
  EXPECT_EQ(sequence.view(1).length, 0);
  EXPECT_EQ(sequence.length(), 0);
  ASSERT_TRUE(sequence.append(1, rows[1].key.data(), rows[1].value.data()));
  EXPECT_EQ(sequence.length(), 300);
  EXPECT_EQ(sequence.view(0).pages.size(), 3U);
}

// The batched append gives each sequence what it gets alone, whatever the lengths and threads.
TEST(Chunk, BatchedAppendEqualsSingleAppends) {
  const auto spec = make_spec({"k4v2", "k16v4"}, 3, 64, 4, 64);
  const auto rows = make_rows(*spec, 700);
  for (const int thread_count : {1, 3}) {
    ThreadPool threads(thread_count);
    const auto pool = PagePool::create(0);
    std::vector<Sequence> sequences;
    std::vector<ModelSequence> models;
    for (int i = 0; i < 4; ++i) {
      sequences.push_back(Sequence::create(spec, pool, host_isa()).value());
      models.emplace_back(*spec);
    }
    for (int round = 0; round < 40; ++round) {
      std::vector<AppendItem> items;
      for (std::size_t i = 0; i < 4; ++i) {
        const int tokens = round == 0 ? 20 + 150 * static_cast<int>(i) : 1;
        models[i].append(rows, sequences[i].length(), tokens);
        ASSERT_TRUE(sequences[i].begin_chunk(tokens));
      }
      for (std::size_t layer = 0; layer < 2; ++layer) {
        items.clear();
        for (Sequence& sequence : sequences) {
          const std::int64_t offset = sequence.length() * 3 * 64;
          items.push_back(
              {&sequence, rows[layer].key.data() + offset, rows[layer].value.data() + offset});
        }
        ASSERT_TRUE(append(items, static_cast<int>(layer), threads));
      }
      for (std::size_t i = 0; i < 4; ++i) ASSERT_EQ(models[i].difference(sequences[i]), "");
    }
  }
}

TEST(Chunk, PagesOfLongSequencesLieInLongExtents) {
  const auto spec = make_spec({"k4v2"}, 2, 32, 4, 64);
  constexpr std::int64_t kPages = 80;
  const auto rows = make_rows(*spec, kPages * 64 + 69);
  for (const int chunk : {64, 1000}) {
    Sequence sequence = Sequence::create(spec, PagePool::create(0), host_isa()).value();
    append_until(sequence, rows, kPages * 64 + 69, chunk);
    for (const PageRef& page : sequence.view(0).pages) {
      EXPECT_EQ(reinterpret_cast<std::uintptr_t>(page.data) % kPageAlignment, 0U);
    }
    EXPECT_EQ(extent_runs(sequence.view(0)),
              (std::vector<std::int64_t>{1, 1, 2, 4, 8, 16, 16, 16, 16}));
  }
}

TEST(Chunk, TheTailShrinksAfterALongChunk) {
  const auto spec = make_spec({"k4v2", "k4v2"}, 2, 64, 4, 64);
  const auto rows = make_rows(*spec, 2300);
  const auto pool = PagePool::create(0);
  Sequence sequence = Sequence::create(spec, pool, host_isa()).value();
  append_until(sequence, rows, 2000, 2000);
  const std::int64_t row_bytes = cache_bytes_16bit(*spec, 1);
  const auto slack = [&] {
    const ByteCount bytes = sequence.bytes();
    return bytes.allocated - bytes.pages - bytes.exact;
  };
  EXPECT_GT(slack(), 1900 * row_bytes);
  append_until(sequence, rows, 2001, 1);
  // At most the free slots of an extent and about 256 rows.
  const std::int64_t extents = 16 * 2 * 2 * 64 * 64;
  EXPECT_LT(slack(), 256 * row_bytes + extents);
  append_until(sequence, rows, 2300, 1);
  EXPECT_LT(slack(), 256 * row_bytes + extents);
  EXPECT_EQ(pool->used_bytes(), sequence.bytes().allocated);
}

TEST(Chunk, DecodingTakesMemoryRarely) {
  const auto spec = make_spec({"k4v2"}, 2, 64, 4, 64);
  const auto rows = make_rows(*spec, 1400);
  Sequence sequence = Sequence::create(spec, PagePool::create(0), host_isa()).value();
  append_until(sequence, rows, 400, 400);
  append_until(sequence, rows, 401, 1);
  int changes = 0;
  int moves = 0;
  std::int64_t allocated = sequence.bytes().allocated;
  const Half* row = sequence.view(0).tail.key;
  while (sequence.length() < 1400) {
    append_until(sequence, rows, sequence.length() + 1, 1);
    const Half* next = sequence.view(0).tail.key;
    if (sequence.bytes().allocated != allocated) ++changes;
    if (next != row && next != row + kPageTokens * 64) ++moves;
    allocated = sequence.bytes().allocated;
    row = next;
  }
  EXPECT_LE(changes, 4);
  EXPECT_LE(moves, 1000 / 60);
}

}  // namespace
}  // namespace kvq
