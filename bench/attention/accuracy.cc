// The kernel's own error: against double precision on the values that pages and exact rows stand
// for.
#include <cmath>

#include "bench/attention/bench_view.h"
#include "kvq/codec/pack.h"

namespace kvq {
namespace {

// Keys and values of one kv head, [tokens, head_dim].
struct HeadRows {
  std::vector<float> key;
  std::vector<float> value;
};

HeadRows unpack_head(const LayerView& view, int head) {
  const int head_dim = view.format->head_dim();
  HeadRows rows;
  const auto append_exact = [&](const ExactRows& exact) {
    const std::size_t old = rows.key.size();
    const std::size_t count = static_cast<std::size_t>(exact.count) * head_dim;
    rows.key.resize(old + count);
    rows.value.resize(old + count);
    to_float(exact.key + head * exact.head_stride, rows.key.data() + old, count);
    to_float(exact.value + head * exact.head_stride, rows.value.data() + old, count);
  };
  append_exact(view.sinks);
  for (const PageRef& page : view.pages) {
    const std::size_t old = rows.key.size();
    rows.key.resize(old + static_cast<std::size_t>(kPageTokens) * head_dim);
    rows.value.resize(rows.key.size());
    unpack_page(*view.format, page.data + head * page.head_stride, rows.key.data() + old,
                rows.value.data() + old);
  }
  append_exact(view.tail);
  return rows;
}

// Softmax attention of one query [head_dim] in double precision.
std::vector<double> attend(const HeadRows& rows, const float* query, int head_dim, double scale) {
  const std::size_t tokens = rows.key.size() / head_dim;
  std::vector<double> weights(tokens);
  double maximum = -INFINITY;
  for (std::size_t t = 0; t < tokens; ++t) {
    double score = 0;
    for (int i = 0; i < head_dim; ++i) score += double{query[i]} * rows.key[t * head_dim + i];
    weights[t] = score * scale;
    maximum = std::max(maximum, weights[t]);
  }
  double sum = 0;
  for (double& weight : weights) sum += weight = std::exp(weight - maximum);
  std::vector<double> output(head_dim);
  for (std::size_t t = 0; t < tokens; ++t) {
    for (int i = 0; i < head_dim; ++i) {
      output[i] += weights[t] / sum * rows.value[t * head_dim + i];
    }
  }
  return output;
}

}  // namespace

std::string_view name(BenchData data) {
  switch (data) {
    case BenchData::kDiffuse:
      return "diffuse";
    case BenchData::kPeaked:
      return "peaked";
    case BenchData::kLargeChannels:
      return "large channels";
    case BenchData::kTwoChannels:
      return "two channels";
  }
  return "unknown";
}

Result<AttentionAccuracy> measure_accuracy(const AttentionBenchOptions& options,
                                           const LayerSpec& spec, BenchData data,
                                           std::int64_t tokens, ThreadPool& threads) {
  const int head_dim = options.head_dim;
  KVQ_ASSIGN_OR_RETURN(const auto bench,
                       BenchView::create({spec, options.kv_heads, head_dim, tokens, options.sinks,
                                          options.window, data, options.seed},
                                         tokens, 1));
  const LayerView view = bench->view(0);
  const AttentionShape shape{options.query_heads, options.kv_heads, head_dim,
                             1 / std::sqrt(static_cast<float>(head_dim))};
  const std::vector<float> query = bench_query(options.query_heads, head_dim, data, options.seed);
  std::vector<float> output(query.size());
  KVQ_ASSIGN_OR_RETURN(Attention attention,
                       Attention::create(shape, {options.isa, options.precision, false}));
  const AttentionItem item{&view, query.data(), output.data(), 1};
  KVQ_RETURN_IF_ERROR(attention.run({&item, 1}, threads));

  AttentionAccuracy accuracy;
  double error = 0;
  double norm = 0;
  const int group = options.query_heads / options.kv_heads;
  for (int kv_head = 0; kv_head < options.kv_heads; ++kv_head) {
    const HeadRows rows = unpack_head(view, kv_head);
    for (int head = kv_head * group; head < (kv_head + 1) * group; ++head) {
      const std::vector<double> expected =
          attend(rows, query.data() + head * head_dim, head_dim, shape.scale);
      double head_error = 0;
      double head_norm = 0;
      for (int i = 0; i < head_dim; ++i) {
        const double difference = output[head * head_dim + i] - expected[i];
        head_error += difference * difference;
        head_norm += expected[i] * expected[i];
      }
      accuracy.worst_head = std::max(accuracy.worst_head, std::sqrt(head_error / head_norm));
      error += head_error;
      norm += head_norm;
    }
  }
  accuracy.relative_error = std::sqrt(error / norm);
  return accuracy;
}

}  // namespace kvq
