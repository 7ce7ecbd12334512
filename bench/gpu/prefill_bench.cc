// Times prefill attention over packed pages and exact rows on a CUDA device.
//
// Reads cases from standard input, a line each:
//   SPEC SEQUENCES QUERY_HEADS KV_HEADS LENGTH CHUNK HEAD_DIM [exact]
// where the newest CHUNK of LENGTH tokens attend, and prints a line of JSON for each. 4 sinks, a
// window of 64; "exact": exact_prefill. Page tables are shuffled.
#include <cuda_runtime_api.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <iostream>
#include <memory>
#include <numeric>
#include <random>
#include <sstream>
#include <string>
#include <vector>

#include "bench/gpu/timing.h"
#include "kvq/attention/cuda/prefill.h"
#include "kvq/codec/pack.h"

namespace kvq::cuda {
namespace {

constexpr int kLaunches = 20;
constexpr int kDistinctPages = 64;  // by content
constexpr int kSinks = 4;
constexpr int kWindow = 64;

template <typename T>
std::unique_ptr<Memory> upload(const std::vector<T>& values) {
  auto memory = std::make_unique<Memory>(values.size() * sizeof(T));
  memory->set(values);
  return memory;
}

struct Case {
  std::string spec;
  int sequences;
  int query_heads;
  int kv_heads;
  std::int64_t length;
  std::int64_t chunk;
  int head_dim;
  bool exact;

  std::int64_t tail_first() const { return packed_boundary(length - chunk, kSinks, kWindow); }
  std::size_t pages() const {
    return static_cast<std::size_t>(packed_pages(length, kSinks, kWindow));
  }
  std::size_t tail_numbers() const {
    return std::size_t(sequences) * kv_heads * (length - tail_first()) * head_dim;
  }
  std::size_t query_numbers() const {
    return std::size_t(sequences) * chunk * query_heads * head_dim;
  }
  // Query heads x pairs of a query and a position that it sees.
  double pairs() const {
    const double seen = static_cast<double>(length) - 0.5 * static_cast<double>(chunk - 1);
    return static_cast<double>(sequences) * query_heads * static_cast<double>(chunk) * seen;
  }
};

template <typename Number>
std::vector<Number> random_numbers(std::size_t count, Number (*convert)(float)) {
  std::mt19937 engine(1);
  std::normal_distribution<float> normal;
  std::vector<Number> block(std::min<std::size_t>(count, 1 << 20));
  for (Number& number : block) number = convert(normal(engine));
  std::vector<Number> numbers(count);
  for (std::size_t i = 0; i < count; ++i) numbers[i] = block[i % block.size()];
  return numbers;
}

// Every page of memory a copy of one of a few.
std::vector<std::byte> random_pages(const Case& test, const PageFormat& format) {
  const std::vector<Half> rows =
      random_numbers<Half>(2 * kDistinctPages * kPageTokens * format.head_dim(), to_half);
  const std::size_t page_rows = std::size_t{kPageTokens} * format.head_dim();
  std::vector<std::byte> distinct(kDistinctPages * format.page_bytes);
  for (std::size_t i = 0; i < kDistinctPages; ++i) {
    pack_page(format, rows.data() + 2 * i * page_rows, rows.data() + (2 * i + 1) * page_rows,
              distinct.data() + i * format.page_bytes, host_isa());
  }
  std::vector<std::byte> pages(test.sequences * test.pages() * test.kv_heads * format.page_bytes);
  for (std::size_t at = 0; at < pages.size(); at += distinct.size()) {
    std::copy_n(distinct.begin(), std::min(distinct.size(), pages.size() - at), pages.begin() + at);
  }
  return pages;
}

std::vector<std::int32_t> shuffled_table(std::size_t count) {
  std::vector<std::int32_t> table(count);
  std::iota(table.begin(), table.end(), 0);
  std::shuffle(table.begin(), table.end(), std::mt19937(2));
  return table;
}

RowBlock rows_of(const Memory& key, const Memory& value, const Case& test, std::int64_t tokens) {
  const std::int64_t head_stride = tokens * test.head_dim;
  return {key.as<std::uint16_t>(), value.as<std::uint16_t>(), head_stride * test.kv_heads,
          head_stride};
}

Status measure(const Case& test) {
  KVQ_ASSIGN_OR_RETURN(const LayerSpec spec, parse_layer_spec(test.spec));
  KVQ_ASSIGN_OR_RETURN(const PageFormat format, PageFormat::create(spec, test.head_dim));
  const AttentionShape shape{.query_heads = test.query_heads,
                             .kv_heads = test.kv_heads,
                             .head_dim = test.head_dim,
                             .scale = 1.0F / std::sqrt(static_cast<float>(test.head_dim))};
  KVQ_ASSIGN_OR_RETURN(
      const Prefill prefill,
      Prefill::create(shape, format,
                      {.sinks = kSinks, .window = kWindow, .exact_prefill = test.exact}));
  std::vector<std::int32_t> starts(test.sequences + 1);
  for (int s = 0; s <= test.sequences; ++s) starts[s] = static_cast<std::int32_t>(s * test.chunk);
  const auto device_starts = upload(starts);
  const auto lengths = upload(std::vector<ChunkLength>(
      test.sequences,
      {static_cast<std::int32_t>(test.length), static_cast<std::int32_t>(test.tail_first())}));
  const auto pages = upload(random_pages(test, format));
  const auto table = upload(shuffled_table(test.sequences * test.pages()));
  const std::vector<Half> rows = random_numbers<Half>(test.tail_numbers(), to_half);
  const auto key = upload(rows);
  const auto value = upload(rows);
  const auto query = upload(random_numbers<BFloat16>(test.query_numbers(), to_bfloat16));
  const Memory output(test.query_numbers() * sizeof(BFloat16));

  PrefillBatch batch;
  batch.sequences = test.sequences;
  batch.tokens = starts.back();
  batch.query = query->data;
  batch.output = output.data;
  batch.query_type = batch.output_type = NumberType::kBFloat16;
  batch.query_starts = device_starts->as<std::int32_t>();
  batch.lengths = lengths->as<ChunkLength>();
  batch.pages = pages->as<std::byte>();
  batch.page_table = table->as<std::int32_t>();
  batch.head_stride = static_cast<std::int64_t>(format.page_bytes);
  batch.page_stride = batch.head_stride * test.kv_heads;
  batch.table_stride = static_cast<std::int32_t>(test.pages());
  batch.sinks = rows_of(*key, *value, test, kSinks);
  batch.tail = rows_of(*key, *value, test, test.length - test.tail_first());

  const Stream stream;
  Status status;
  const Graph graph(stream, [&] { status = prefill.run(batch, stream.get()); });
  KVQ_RETURN_IF_ERROR(status);
  const std::vector<double> times = graph.time(stream, kLaunches);

  const double median = times[times.size() / 2];
  fmt::print(R"({{"spec": "{}", "shape": [{}, {}, {}, {}, {}, {}], "kernel": "{}", "exact": {}, )"
             R"("microseconds": {:.1f}, "p10": {:.1f}, "p90": {:.1f}, "teraflops": {:.0f}}})"
             "\n",
             test.spec, test.sequences, test.query_heads, test.kv_heads, test.length, test.chunk,
             test.head_dim, prefill.kernel_name(), test.exact, median, times[times.size() / 10],
             times[times.size() * 9 / 10], 4e-6 * test.pairs() * test.head_dim / median);
  std::fflush(stdout);
  return {};
}

int run() {
  std::string line;
  while (std::getline(std::cin, line)) {
    std::istringstream words(line);
    Case test{};
    std::string mode;
    if (!(words >> test.spec >> test.sequences >> test.query_heads >> test.kv_heads >>
          test.length >> test.chunk >> test.head_dim)) {
      std::fprintf(stderr,
                   "expected SPEC SEQUENCES QUERY_HEADS KV_HEADS LENGTH CHUNK HEAD_DIM [exact], "
                   "found: %s\n",
                   line.c_str());
      return 2;
    }
    test.exact = words >> mode && mode == "exact";
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
