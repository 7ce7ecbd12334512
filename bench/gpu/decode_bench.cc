// Times decode attention over packed pages on a CUDA device.
//
// Reads cases from standard input, a line each:
//   SPEC SEQUENCES QUERY_HEADS KV_HEADS TOKENS HEAD_DIM [deterministic] [window] [append]
// and prints a line of JSON for each. A graph of launches that rotate over at least 300 MB of pages
// (more than twice any L2), through shuffled page tables; every page is distinct memory. `window`:
// 4 sinks and a window of 64 are exact rows; otherwise all tokens are in pages. `append`: before
// each launch the step's keys and values are written to row blocks, as in a decode step.
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
#include "kvq/attention/cuda/decode.h"
#include "kvq/cache/cuda/append_rows.h"
#include "kvq/cache/cuda/block_unit.h"
#include "kvq/codec/pack.h"

namespace kvq::cuda {
namespace {

constexpr std::size_t kRotatedBytes = std::size_t{300} << 20;
constexpr int kReplays = 30;
constexpr int kDistinctPages = 512;  // by content

struct Case {
  std::string spec;
  int sequences;
  int query_heads;
  int kv_heads;
  std::int64_t tokens;
  int head_dim;
  bool deterministic;
  bool window;
  bool append;

  SequenceLength length() const {
    constexpr std::int64_t kSinks = 4;
    constexpr std::int64_t kWindow = 64;
    if (!window) {
      return {static_cast<std::int32_t>((tokens + kPageTokens - 1) / kPageTokens), 0, 0};
    }
    const std::int64_t pages =
        std::max<std::int64_t>(0, tokens - 1 - kSinks - kWindow) / kPageTokens;
    return {static_cast<std::int32_t>(pages), static_cast<std::int32_t>(kSinks),
            static_cast<std::int32_t>(tokens - kSinks - pages * kPageTokens)};
  }
  std::size_t pages() const { return static_cast<std::size_t>(length().pages); }
  // Elements of the keys of all exact rows.
  std::size_t exact_numbers() const {
    return std::size_t(sequences) * kv_heads * (length().sinks + length().tail) * head_dim;
  }
};

std::vector<std::byte> random_pages(const PageFormat& format) {
  std::mt19937_64 engine(1);
  std::normal_distribution<float> normal;
  std::vector<std::byte> pages(kDistinctPages * format.page_bytes);
  std::vector<Half> key(kPageTokens * format.head_dim());
  std::vector<Half> value(key.size());
  for (int i = 0; i < kDistinctPages; ++i) {
    for (Half& number : key) number = to_half(normal(engine));
    for (Half& number : value) number = to_half(normal(engine));
    pack_page(format, key.data(), value.data(), pages.data() + i * format.page_bytes, host_isa());
  }
  return pages;
}

// Pages, a table and a query; what one launch reads.
struct Input {
  Input(const Case& test, const PageFormat& format, const std::vector<std::byte>& distinct,
        int seed)
      : pages(bytes_of(test, format)),
        table(test.sequences * test.pages() * sizeof(std::int32_t)),
        exact(std::max<std::size_t>(1, 2 * test.exact_numbers()) * sizeof(Half)),
        query(query_bytes(test)),
        output(query_bytes(test)) {
    const std::size_t total = bytes_of(test, format);
    std::size_t filled = std::min(total, distinct.size());
    check(cudaMemcpy(pages.data, distinct.data(), filled, cudaMemcpyHostToDevice));
    std::byte* const start = static_cast<std::byte*>(pages.data);
    for (; filled < total; filled += std::min(filled, total - filled)) {
      check(cudaMemcpy(start + filled, start, std::min(filled, total - filled),
                       cudaMemcpyDeviceToDevice));
    }
    std::mt19937_64 engine(seed);
    std::vector<std::int32_t> order(test.sequences * test.pages());
    std::iota(order.begin(), order.end(), 0);
    std::shuffle(order.begin(), order.end(), engine);
    check(cudaMemcpy(table.data, order.data(), order.size() * sizeof(std::int32_t),
                     cudaMemcpyHostToDevice));
    std::normal_distribution<float> normal;
    std::vector<BFloat16> numbers(query_bytes(test) / sizeof(BFloat16));
    for (BFloat16& number : numbers) number = to_bfloat16(normal(engine));
    std::vector<Half> rows(2 * test.exact_numbers());
    for (Half& number : rows) number = to_half(normal(engine));
    check(cudaMemcpy(exact.data, rows.data(), rows.size() * sizeof(Half), cudaMemcpyHostToDevice));
    check(cudaMemcpy(query.data, numbers.data(), query_bytes(test), cudaMemcpyHostToDevice));
  }

  static std::size_t bytes_of(const Case& test, const PageFormat& format) {
    return test.sequences * test.pages() * test.kv_heads * format.page_bytes;
  }
  static std::size_t query_bytes(const Case& test) {
    return std::size_t(test.sequences) * test.query_heads * test.head_dim * sizeof(BFloat16);
  }

  Memory pages;
  Memory table;
  Memory exact;  // keys of sinks, keys of tails, values likewise
  Memory query;
  Memory output;
};

// A row of every sequence, written to a row block of its own.
class Append {
 public:
  explicit Append(const Case& test)
      : numbers_(std::size_t(test.sequences) * test.kv_heads * test.head_dim),
        block_units_(static_cast<std::int32_t>(
            (4 * numbers_ / test.sequences * kPageTokens + kBlockUnit - 1) / kBlockUnit)),
        rows_(2 * numbers_ * sizeof(float)),
        places_(test.sequences * sizeof(RowPlace)),
        blocks_(std::size_t(test.sequences) * block_units_ * kBlockUnit),
        bad_(sizeof(BadNumber)) {
    check(cudaMemset(rows_.data, 0, 2 * numbers_ * sizeof(float)));
    std::vector<RowPlace> places;
    for (int i = 0; i < test.sequences; ++i) places.push_back({i * block_units_, i % kPageTokens});
    places_.set(places);
    bad_.set<BadNumber>({kNoBadNumber});
    batch_ = {.key = rows_.as<float>(),
              .value = rows_.as<float>() + numbers_,
              .places = places_.as<RowPlace>(),
              .base = blocks_.as<std::byte>(),
              .bad = bad_.as<BadNumber>(),
              .row_offset = 0,
              .sink_offset = 0,
              .rows = test.sequences,
              .kv_heads = test.kv_heads,
              .head_dim = test.head_dim,
              .sinks = 0,
              .layer = 0};
  }

  void run(cudaStream_t stream) const { check(append_rows(batch_, stream)); }

 private:
  std::size_t numbers_;  // of the keys
  std::int32_t block_units_;
  Memory rows_;
  Memory places_;
  Memory blocks_;
  Memory bad_;
  AppendRows batch_{};
};

DecodeBatch batch_of(const Case& test, const PageFormat& format, const Input& input,
                     const SequenceLength* lengths) {
  const SequenceLength length = test.length();
  DecodeBatch batch;
  batch.sequences = test.sequences;
  batch.query = input.query.data;
  batch.output = input.output.data;
  batch.query_type = batch.output_type = NumberType::kBFloat16;
  batch.pages = static_cast<std::byte*>(input.pages.data);
  batch.page_table = static_cast<std::int32_t*>(input.table.data);
  batch.head_stride = static_cast<std::int64_t>(format.page_bytes);
  batch.page_stride = batch.head_stride * test.kv_heads;
  batch.table_stride = length.pages;
  batch.pages_settled = true;
  batch.lengths = lengths;
  if (!test.window) return batch;
  const std::int64_t sinks = std::int64_t{length.sinks} * test.head_dim;  // of one kv head
  const std::int64_t tail = std::int64_t{length.tail} * test.head_dim;
  const auto* const key = static_cast<std::uint16_t*>(input.exact.data);
  const std::uint16_t* const value = key + test.exact_numbers();
  const std::int64_t all_sinks = test.sequences * test.kv_heads * sinks;
  batch.sinks = {key, value, test.kv_heads * sinks, sinks};
  batch.tail = {key + all_sinks, value + all_sinks, test.kv_heads * tail, tail};
  return batch;
}

Status measure(const Case& test) {
  KVQ_ASSIGN_OR_RETURN(const LayerSpec spec, parse_layer_spec(test.spec));
  KVQ_ASSIGN_OR_RETURN(const PageFormat format, PageFormat::create(spec, test.head_dim));
  const AttentionShape shape{.query_heads = test.query_heads,
                             .kv_heads = test.kv_heads,
                             .head_dim = test.head_dim,
                             .scale = 1.0F / std::sqrt(static_cast<float>(test.head_dim))};
  KVQ_ASSIGN_OR_RETURN(const Decode decode, Decode::create(shape, format,
                                                           {.max_sequences = test.sequences,
                                                            .deterministic = test.deterministic}));
  const std::vector<std::byte> distinct = random_pages(format);
  const std::size_t bytes = Input::bytes_of(test, format);
  const int rotated = static_cast<int>(std::max<std::size_t>(2, kRotatedBytes / bytes + 1));
  std::vector<std::unique_ptr<Input>> inputs;
  for (int i = 0; i < rotated; ++i) {
    inputs.push_back(std::make_unique<Input>(test, format, distinct, i));
  }
  const std::vector<SequenceLength> lengths(test.sequences, test.length());
  const Memory device_lengths(lengths.size() * sizeof(SequenceLength));
  check(cudaMemcpy(device_lengths.data, lengths.data(), lengths.size() * sizeof(SequenceLength),
                   cudaMemcpyHostToDevice));
  const Memory workspace(decode.workspace_bytes());
  const Stream stream;
  KVQ_RETURN_IF_ERROR(decode.initialize(workspace.data, stream.get()));
  check(cudaStreamSynchronize(stream.get()));

  const Append append(test);
  const int launches = (8 + rotated - 1) / rotated * rotated;
  Status status;
  const Graph graph(stream, [&] {
    for (int i = 0; i < launches && status; ++i) {
      if (test.append) append.run(stream.get());
      status = decode.run(
          batch_of(test, format, *inputs[i % rotated], device_lengths.as<SequenceLength>()),
          workspace.data, stream.get());
    }
  });
  KVQ_RETURN_IF_ERROR(status);
  std::vector<double> times = graph.time(stream, kReplays);
  for (double& time : times) time /= launches;

  const double median = times[times.size() / 2];
  fmt::print(
      R"({{"spec": "{}", "shape": [{}, {}, {}, {}, {}], "kernel": "{}", "deterministic": {}, "window": {}, )"
      R"("append": {}, )"
      R"("microseconds": {:.2f}, "p10": {:.2f}, "p90": {:.2f}, "gigabytes_per_second": {:.0f}}})"
      "\n",
      test.spec, test.sequences, test.query_heads, test.kv_heads, test.tokens, test.head_dim,
      decode.kernel_name(), test.deterministic, test.window, test.append, median,
      times[times.size() / 10], times[times.size() * 9 / 10],
      static_cast<double>(bytes + 2 * test.exact_numbers() * sizeof(Half)) / median * 1e-3);
  std::fflush(stdout);
  return {};
}

int run() {
  std::string line;
  while (std::getline(std::cin, line)) {
    std::istringstream words(line);
    Case test{};
    bool valid = static_cast<bool>(words >> test.spec >> test.sequences >> test.query_heads >>
                                   test.kv_heads >> test.tokens >> test.head_dim);
    for (std::string mode; words >> mode;) {
      test.deterministic |= mode == "deterministic";
      test.window |= mode == "window";
      test.append |= mode == "append";
      valid &= mode == "deterministic" || mode == "window" || mode == "append";
    }
    if (!valid) {
      std::fprintf(stderr,
                   "expected SPEC SEQUENCES QUERY_HEADS KV_HEADS TOKENS HEAD_DIM [deterministic] "
                   "[window] [append], found: %s\n",
                   line.c_str());
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
