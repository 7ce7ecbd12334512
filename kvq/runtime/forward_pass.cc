#include "kvq/runtime/forward_pass.h"

#include <algorithm>
#include <optional>
#include <tuple>

#include "kvq/runtime/rotary.h"

namespace kvq {

// Numbers of the checks of a pass, in its order.
struct Checks {
  static int attention_input(int layer) { return 2 * layer; }
  static int attention_output(int layer) { return 2 * layer + 1; }
  static int output(int layers) { return 2 * layers; }
  static int logits(int layers) { return 2 * layers + 1; }
};

ForwardPass::ForwardPass(const ModelConfig& config, const ModelWeights& weights, Ops& ops,
                         CachedAttention& attention)
    : config_(config),
      weights_(weights),
      ops_(ops),
      attention_(attention),
      frequencies_(rotary_frequencies(config)) {}

Status ForwardPass::run(std::span<const PassItem> items, const PassOptions& options, int first_row,
                        float* logits) {
  items_ = items;
  options_ = &options;
  first_row_ = first_row;
  rows_ = 0;
  for (const PassItem& item : items) rows_ += static_cast<int>(item.tokens.size());
  list_wanted_rows();
  KVQ_RETURN_IF_ERROR(reserve(rows_));
  KVQ_RETURN_IF_ERROR(begin_chunks());
  Status status = run_chunks(logits);
  if (!status) roll_back();
  return status;
}

Status ForwardPass::run_chunks(float* logits) {
  KVQ_RETURN_IF_ERROR(attention_.begin(items_));
  read_inputs();
  const auto body = [&] { return run_layers(logits); };
  key_.assign({static_cast<std::uintptr_t>(rows_),
               reinterpret_cast<std::uintptr_t>(activations_.hidden.get()),
               reinterpret_cast<std::uintptr_t>(logits)});
  const bool whole = options_->first_layer == 0 && options_->tap == nullptr &&
                     static_cast<int>(wanted_rows_.size()) == rows_;
  if (whole && attention_.add_to_key(key_)) {
    KVQ_RETURN_IF_ERROR(ops_.run(key_, body));
  } else {
    KVQ_RETURN_IF_ERROR(body());
  }
  KVQ_ASSIGN_OR_RETURN(const std::optional<int> failed, ops_.finish());
  KVQ_RETURN_IF_ERROR(attention_.finish());
  if (failed) return tl::unexpected(describe(*failed));
  return {};
}

Status ForwardPass::reserve(int rows) {
  if (rows <= activations_.capacity) return {};
  activations_ = {};
  const auto allocate = [&](int width, DeviceFloats& memory) -> Status {
    const std::size_t count = static_cast<std::size_t>(rows) * static_cast<std::size_t>(width);
    KVQ_ASSIGN_OR_RETURN(memory, ops_.allocate(count));
    return {};
  };
  const int query_width = config_.query_heads * config_.head_dim;
  const int kv_width = config_.kv_heads * config_.head_dim;
  KVQ_RETURN_IF_ERROR(allocate(config_.hidden, activations_.hidden));
  KVQ_RETURN_IF_ERROR(allocate(config_.hidden, activations_.normed));
  KVQ_RETURN_IF_ERROR(allocate(config_.hidden, activations_.wanted));
  KVQ_RETURN_IF_ERROR(
      allocate(std::max(query_width + 2 * kv_width, 2 * config_.intermediate), activations_.fused));
  KVQ_RETURN_IF_ERROR(allocate(query_width, activations_.query));
  KVQ_RETURN_IF_ERROR(allocate(kv_width, activations_.key));
  KVQ_RETURN_IF_ERROR(allocate(kv_width, activations_.value));
  KVQ_RETURN_IF_ERROR(allocate(query_width, activations_.attention));
  KVQ_RETURN_IF_ERROR(allocate(config_.intermediate, activations_.gated));
  KVQ_RETURN_IF_ERROR(allocate(config_.head_dim / 2, activations_.cosine));
  KVQ_RETURN_IF_ERROR(allocate(config_.head_dim / 2, activations_.sine));
  activations_.capacity = rows;
  return {};
}

void ForwardPass::list_wanted_rows() {
  wanted_rows_.clear();
  int end = 0;
  for (const PassItem& item : items_) {
    end += static_cast<int>(item.tokens.size());
    for (int row = end - item.logit_rows; row < end; ++row) wanted_rows_.push_back(row);
  }
}

float* ForwardPass::wanted_hidden() const {
  const bool all = static_cast<int>(wanted_rows_.size()) == rows_;
  return (all ? activations_.hidden : activations_.wanted).get();
}

Status ForwardPass::begin_chunks() {
  starts_.clear();
  for (const PassItem& item : items_) {
    const std::int64_t start = item.sequence->length();
    if (Status status = item.sequence->begin_chunk(static_cast<int>(item.tokens.size())); !status) {
      roll_back();
      return status;
    }
    starts_.push_back(start);
  }
  return {};
}

// For the items of starts_. truncate() cannot fail on a cut inside the sequence with no chunk open,
// and is exact inside the newest chunk.
void ForwardPass::roll_back() {
  for (std::size_t i = 0; i < starts_.size(); ++i) {
    Sequence& sequence = *items_[i].sequence;
    sequence.abort_chunk();
    if (sequence.length() > starts_[i]) std::ignore = sequence.truncate(starts_[i]);
  }
}

// The first layer's inputs: embedded tokens, or those that the caller has.
void ForwardPass::read_inputs() {
  tokens_.clear();
  positions_.clear();
  for (std::size_t i = 0; i < items_.size(); ++i) {
    tokens_.insert(tokens_.end(), items_[i].tokens.begin(), items_[i].tokens.end());
    for (std::size_t t = 0; t < items_[i].tokens.size(); ++t) {
      positions_.push_back(starts_[i] + static_cast<std::int64_t>(t));
    }
  }
  if (options_->first_layer == 0) {
    ops_.embed(*weights_.embedding, tokens_, activations_.hidden.get());
  } else {
    const auto width = static_cast<std::size_t>(config_.hidden);
    ops_.from_host(&options_->hidden[static_cast<std::size_t>(first_row_) * width],
                   static_cast<std::size_t>(rows_) * width, activations_.hidden.get());
  }
  ops_.rotary_table(positions_, frequencies_, activations_.cosine.get(), activations_.sine.get());
}

Status ForwardPass::run_layers(float* logits) {
  const int last = config_.layers - 1;
  for (int layer = options_->first_layer; layer < last; ++layer) {
    KVQ_RETURN_IF_ERROR(project_heads(layer));
    KVQ_RETURN_IF_ERROR(attend(layer, false));
    KVQ_RETURN_IF_ERROR(feed_forward(layer, activations_.hidden.get(), rows_));
  }
  KVQ_RETURN_IF_ERROR(project_heads(last));
  const int rows = static_cast<int>(wanted_rows_.size());
  KVQ_RETURN_IF_ERROR(attend(last, true));
  if (rows == 0) return {};
  float* wanted = wanted_hidden();
  KVQ_RETURN_IF_ERROR(feed_forward(last, wanted, rows));
  KVQ_RETURN_IF_ERROR(norm(wanted, weights_.final_norm, rows, Checks::output(config_.layers)));
  KVQ_RETURN_IF_ERROR(
      ops_.multiply(*weights_.output, activations_.normed.get(), rows, false, logits));
  const std::size_t count = wanted_rows_.size() * static_cast<std::size_t>(config_.vocabulary);
  const int check = Checks::logits(config_.layers);
  if (!ops_.all_finite(logits, count, check)) return tl::unexpected(describe(check));
  return {};
}

Status ForwardPass::norm(const float* hidden, const DeviceFloats& weight, int rows, int check) {
  if (ops_.rms_norm(hidden, weight.get(), static_cast<float>(config_.norm_epsilon), rows,
                    config_.hidden, check, activations_.normed.get())) {
    return {};
  }
  return tl::unexpected(describe(check));
}

Error ForwardPass::describe(int check) const {
  if (check == Checks::logits(config_.layers)) return {"logits: found numbers that are not finite"};
  const int layer = std::min(check / 2, config_.layers - 1);
  const char* what = check == Checks::output(config_.layers)   ? "output"
                     : check == Checks::attention_input(layer) ? "input of attention"
                                                               : "output of attention";
  return {fmt::format("layer {}, {}: found activations that are not finite", layer, what)};
}

Status ForwardPass::project_heads(int layer) {
  const LayerWeights& weights = weights_.layers[static_cast<std::size_t>(layer)];
  if (options_->tap != nullptr) show_input(layer);
  KVQ_RETURN_IF_ERROR(norm(activations_.hidden.get(), weights.attention_norm, rows_,
                           Checks::attention_input(layer)));
  KVQ_RETURN_IF_ERROR(ops_.multiply(*weights.query_key_value, activations_.normed.get(), rows_,
                                    false, activations_.fused.get()));
  const HeadShape shape = {config_.query_heads,    config_.kv_heads,
                           config_.head_dim,       weights.query_norm.get(),
                           weights.key_norm.get(), static_cast<float>(config_.norm_epsilon)};
  ops_.split_heads(shape, activations_.fused.get(), activations_.cosine.get(),
                   activations_.sine.get(), rows_,
                   {activations_.query.get(), activations_.key.get(), activations_.value.get()});
  if (options_->tap != nullptr) show_heads(layer);
  return {};
}

void ForwardPass::show_input(int layer) {
  const auto count = static_cast<std::size_t>(rows_) * static_cast<std::size_t>(config_.hidden);
  options_->tap->layer_input(layer, first_row_, rows_,
                             ops_.to_host(activations_.hidden.get(), count));
}

void ForwardPass::show_heads(int layer) {
  const auto head_rows =
      static_cast<std::size_t>(rows_) * static_cast<std::size_t>(config_.head_dim);
  const auto query_count = head_rows * static_cast<std::size_t>(config_.query_heads);
  const auto kv_count = head_rows * static_cast<std::size_t>(config_.kv_heads);
  options_->tap->layer_heads(layer, first_row_, rows_,
                             ops_.to_host(activations_.query.get(), query_count),
                             ops_.to_host(activations_.key.get(), kv_count),
                             ops_.to_host(activations_.value.get(), kv_count));
}

// hidden += W_o attention(query, caches), after the layer's keys and values went to the caches.
// Where `only_wanted`, the result is only computed for the wanted rows, and goes to
// activations_.wanted.
Status ForwardPass::attend(int layer, bool only_wanted) {
  const int cache_layer = layer - options_->first_layer;
  KVQ_RETURN_IF_ERROR(
      attention_.append(cache_layer, activations_.key.get(), activations_.value.get()));
  const int rows = only_wanted ? static_cast<int>(wanted_rows_.size()) : rows_;
  if (rows == 0) return {};
  KVQ_RETURN_IF_ERROR(attention_.attend(cache_layer, only_wanted, activations_.query.get(),
                                        activations_.attention.get()));
  float* hidden = only_wanted ? wanted_hidden() : activations_.hidden.get();
  if (hidden != activations_.hidden.get()) {
    ops_.gather_rows(activations_.hidden.get(), wanted_rows_, config_.hidden, hidden);
  }
  return ops_.multiply(*weights_.layers[static_cast<std::size_t>(layer)].attention_output,
                       activations_.attention.get(), rows, true, hidden);
}

// hidden += W_down (silu(gate) * up).
//   hidden  device [rows, hidden]
Status ForwardPass::feed_forward(int layer, float* hidden, int rows) {
  const LayerWeights& weights = weights_.layers[static_cast<std::size_t>(layer)];
  KVQ_RETURN_IF_ERROR(norm(hidden, weights.mlp_norm, rows, Checks::attention_output(layer)));
  KVQ_RETURN_IF_ERROR(ops_.multiply(*weights.gate_up, activations_.normed.get(), rows, false,
                                    activations_.fused.get()));
  ops_.silu_multiply(activations_.fused.get(), rows, config_.intermediate,
                     activations_.gated.get());
  return ops_.multiply(*weights.down, activations_.gated.get(), rows, true, hidden);
}

}  // namespace kvq
