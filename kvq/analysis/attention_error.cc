#include "kvq/analysis/attention_error.h"

#include <algorithm>
#include <cmath>

namespace kvq {
namespace {

double squared_distance(std::span<const float> a, std::span<const float> b) {
  double sum = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    const double difference = double{a[i]} - double{b[i]};
    sum += difference * difference;
  }
  return sum;
}

// The view that the sequence had when it was `length` tokens long. The tail of a sequence that was
// appended in one chunk holds every row behind the sinks.
LayerView shortened(LayerView view, std::int64_t length) {
  view.length = length;
  view.sinks.count = std::min(view.sinks.count, length);
  view.tail.count = std::max<std::int64_t>(0, length - view.tail.first);
  return view;
}

}  // namespace

HeadsTap::HeadsTap(const ModelConfig& config, int tokens)
    : query_width_(std::ptrdiff_t{config.query_heads} * config.head_dim),
      kv_width_(std::ptrdiff_t{config.kv_heads} * config.head_dim),
      layers_(static_cast<std::size_t>(config.layers)) {
  for (CapturedHeads& heads : layers_) {
    heads.query.resize(static_cast<std::size_t>(tokens * query_width_));
    heads.key.resize(static_cast<std::size_t>(tokens * kv_width_));
    heads.value.resize(static_cast<std::size_t>(tokens * kv_width_));
  }
}

void HeadsTap::layer_input(int /*layer*/, int /*first_row*/, int /*rows*/,
                           const float* /*hidden*/) {}

void HeadsTap::layer_heads(int layer, int first_row, int rows, const float* query, const float* key,
                           const float* value) {
  CapturedHeads& heads = layers_[static_cast<std::size_t>(layer)];
  std::copy_n(query, rows * query_width_, heads.query.begin() + first_row * query_width_);
  std::copy_n(key, rows * kv_width_, heads.key.begin() + first_row * kv_width_);
  std::copy_n(value, rows * kv_width_, heads.value.begin() + first_row * kv_width_);
}

std::vector<QueryBlock> query_blocks(const CacheSpec& exact_rows, int tokens, int stride) {
  std::vector<QueryBlock> blocks;
  for (int first = first_packed_query(exact_rows.sinks, exact_rows.window);
       first + kQueryBlock <= tokens; first += stride) {
    blocks.push_back({first, kQueryBlock});
  }
  return blocks;
}

AttentionError::AttentionError(const ModelConfig& config, const CapturedHeads& heads,
                               CacheSpec shape, std::vector<QueryBlock> blocks, Isa isa,
                               Attention attention, std::shared_ptr<PagePool> pool,
                               ThreadPool& threads)
    : heads_(heads),
      query_width_(std::ptrdiff_t{config.query_heads} * config.head_dim),
      shape_(std::move(shape)),
      blocks_(std::move(blocks)),
      isa_(isa),
      attention_(std::move(attention)),
      pool_(std::move(pool)),
      threads_(threads),
      tokens_(static_cast<int>(static_cast<std::ptrdiff_t>(heads.query.size()) / query_width_)) {
  std::ptrdiff_t queries = 0;
  for (const QueryBlock& block : blocks_) queries += block.count;
  exact_.resize(static_cast<std::size_t>(queries * query_width_));
  changed_.resize(exact_.size());
}

Result<AttentionError> AttentionError::create(const ModelConfig& config, const CapturedHeads& heads,
                                              const CacheSpec& exact_rows,
                                              std::vector<QueryBlock> blocks, Isa isa,
                                              std::shared_ptr<PagePool> pool, ThreadPool& threads) {
  const AttentionShape attention_shape = {config.query_heads, config.kv_heads, config.head_dim,
                                          1 / std::sqrt(static_cast<float>(config.head_dim))};
  KVQ_ASSIGN_OR_RETURN(Attention attention,
                       Attention::create(attention_shape, {isa, Precision::kDefault, false}));
  CacheSpec shape = CacheSpec::uniform(LayerSpec{}, 1, config.kv_heads, config.head_dim);
  shape.sinks = exact_rows.sinks;
  shape.window = exact_rows.window;
  AttentionError error(config, heads, std::move(shape), std::move(blocks), isa,
                       std::move(attention), std::move(pool), threads);
  KVQ_RETURN_IF_ERROR(error.attend(LayerSpec{}, error.exact_));
  return error;
}

Result<double> AttentionError::mean_square(const LayerSpec& spec) {
  KVQ_RETURN_IF_ERROR(attend(spec, changed_));
  const std::size_t queries = exact_.size() / static_cast<std::size_t>(query_width_);
  return squared_distance(changed_, exact_) / static_cast<double>(queries);
}

Status AttentionError::attend(const LayerSpec& spec, std::vector<float>& output) {
  CacheSpec cache = shape_;
  cache.layers = {spec};
  KVQ_ASSIGN_OR_RETURN(
      Sequence sequence,
      Sequence::create(std::make_shared<const CacheSpec>(std::move(cache)), pool_, isa_));
  KVQ_RETURN_IF_ERROR(sequence.begin_chunk(tokens_));
  const AppendItem rows{&sequence, heads_.key.data(), heads_.value.data()};
  KVQ_RETURN_IF_ERROR(append({&rows, 1}, 0, threads_));
  const LayerView whole = sequence.view(0);
  std::vector<LayerView> views;
  std::vector<AttentionItem> items;
  views.reserve(blocks_.size());
  items.reserve(blocks_.size());
  float* target = output.data();
  for (const QueryBlock& block : blocks_) {
    views.push_back(shortened(whole, block.first + block.count));
    items.push_back(
        {&views.back(), heads_.query.data() + block.first * query_width_, target, block.count});
    target += block.count * query_width_;
  }
  return attention_.run(items, threads_);
}

}  // namespace kvq
