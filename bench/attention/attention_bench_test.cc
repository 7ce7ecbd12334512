#include "bench/attention/attention_bench.h"

#include <gtest/gtest.h>

namespace kvq {
namespace {

AttentionBenchOptions small_options() {
  AttentionBenchOptions options;
  options.formats = {*parse_layer_spec("k16v16"), *parse_layer_spec("k4v2")};
  options.query_heads = 8;
  options.kv_heads = 2;
  options.head_dim = 64;
  options.tokens = 1000;
  options.rounds = 3;
  options.isa = host_isa();
  options.real_time = false;
  options.rotation_bytes = 4 << 20;
  return options;
}

TEST(AttentionBench, FiguresAgreeWithEachOther) {
  ThreadPool threads(2);
  const auto report = bench_attention(small_options(), threads);
  ASSERT_TRUE(report) << report.error().message;
  EXPECT_GT(report->read_gb_per_s, 0);
  EXPECT_EQ(report->rounds + report->dropped_rounds, 3);
  ASSERT_EQ(report->formats.size(), 2U);
  for (const AttentionBenchResult& result : report->formats) {
    EXPECT_LE(result.best_seconds, result.seconds);
    EXPECT_NEAR(result.gb_per_s, static_cast<double>(result.packed_bytes) / result.seconds / 1e9,
                1e-6 * result.gb_per_s);
    for (const AttentionAccuracy& accuracy : result.accuracy) {
      EXPECT_GE(accuracy.worst_head, accuracy.relative_error * 0.5);
      EXPECT_LT(accuracy.relative_error, 1.5e-2);
    }
  }
  // 1000 tokens: 4 sinks, 14 pages, 100 rows behind them.
  EXPECT_EQ(report->formats[0].packed_bytes, 2 * 1000 * 64 * 2 * 2);
}

TEST(AttentionBench, RejectsWhatItCannotMeasure) {
  ThreadPool threads(1);
  AttentionBenchOptions options = small_options();
  options.tokens = 60;
  EXPECT_FALSE(bench_attention(options, threads));
  options = small_options();
  options.formats.clear();
  EXPECT_FALSE(bench_attention(options, threads));
}

}  // namespace
}  // namespace kvq
