#include "kvq/analysis/activations.h"

#include <algorithm>
#include <cmath>

#include "kvq/analysis/gram_matrix.h"
#include "kvq/base/progress.h"

namespace kvq {
namespace {

// One kv head of one layer.
class HeadMeter {
 public:
  HeadMeter(int head_dim, std::size_t formats)
      : head_dim_(head_dim), key_(head_dim), value_(head_dim), errors_(formats) {}

  void begin_window() {
    pending_key_.clear();
    pending_value_.clear();
  }

  // key, value  [rows, head_dim], `stride` numbers from one row to the next
  void add(const float* key, const float* value, int rows, std::ptrdiff_t stride,
           std::span<const PageFormat> formats, Isa isa) {
    key_.add(key, rows, stride);
    value_.add(value, rows, stride);
    if (formats.empty()) return;
    for (int row = 0; row < rows; ++row) {
      push(key + row * stride, pending_key_);
      push(value + row * stride, pending_value_);
      const auto page = static_cast<std::size_t>(kPageTokens * head_dim_);
      if (pending_key_.size() < page) continue;
      if (finite(pending_key_) && finite(pending_value_)) {
        add_page(formats, pending_key_.data(), pending_value_.data(), isa, errors_);
      }
      begin_window();
    }
  }

  const GramMatrix& key() const { return key_; }
  const GramMatrix& value() const { return value_; }
  const PageErrors& errors() const { return errors_; }

 private:
  void push(const float* row, std::vector<Half>& pending) const {
    const std::size_t size = pending.size();
    pending.resize(size + static_cast<std::size_t>(head_dim_));
    to_half(row, &pending[size], static_cast<std::size_t>(head_dim_));
  }

  // Rows beyond fp16: the cache refuses them, and with it the pass.
  static bool finite(const std::vector<Half>& rows) {
    return std::ranges::all_of(rows, [](Half x) { return std::isfinite(to_float(x)); });
  }

  int head_dim_;
  GramMatrix key_;
  GramMatrix value_;
  PageErrors errors_;
  // Rows of the page that is not full yet, [tokens, head_dim].
  std::vector<Half> pending_key_;
  std::vector<Half> pending_value_;
};

HeadRange range_of(const std::vector<double>& values) {
  HeadRange range{0, values.front(), values.front()};
  for (const double value : values) {
    range.mean += value / static_cast<double>(values.size());
    range.low = std::min(range.low, value);
    range.high = std::max(range.high, value);
  }
  return range;
}

// grams, errors: of the layer's heads.
TensorActivations summarize(const std::vector<const GramMatrix*>& grams,
                            const std::vector<const std::vector<ErrorSum>*>& errors) {
  TensorActivations result;
  std::vector<double> sizes;
  std::vector<std::vector<double>> spectra;
  for (const GramMatrix* gram : grams) {
    sizes.push_back(gram->root_mean_square());
    spectra.push_back(gram->singular_values());
  }
  result.root_mean_square = range_of(sizes);
  for (std::size_t i = 0; i < spectra.front().size(); ++i) {
    std::vector<double> values;
    values.reserve(spectra.size());
    for (const auto& spectrum : spectra) values.push_back(spectrum[i]);
    result.spectrum.push_back(range_of(values));
  }
  std::vector<ErrorSum> sums(errors.front()->size());
  for (const std::vector<ErrorSum>* head : errors) {
    for (std::size_t i = 0; i < sums.size(); ++i) sums[i].add((*head)[i]);
  }
  for (const ErrorSum& sum : sums) result.errors.push_back(sum.error());
  return result;
}

class ActivationMeter : public PassTap {
 public:
  ActivationMeter(Engine& engine, std::vector<PageFormat> formats, int sinks, Isa isa)
      : config_(engine.config()),
        threads_(engine.threads()),
        formats_(std::move(formats)),
        sinks_(sinks),
        isa_(isa),
        heads_(
            static_cast<std::size_t>(config_.layers) * static_cast<std::size_t>(config_.kv_heads),
            HeadMeter(config_.head_dim, formats_.size())) {}

  void layer_input(int /*layer*/, int /*first_row*/, int /*rows*/,
                   const float* /*hidden*/) override {}

  // One window is one call of the engine: row 0 begins it.
  void layer_heads(int layer, int first_row, int rows, const float* /*query*/, const float* key,
                   const float* value) override {
    const int skipped = std::clamp(sinks_ - first_row, 0, rows);
    const std::ptrdiff_t stride = std::ptrdiff_t{config_.kv_heads} * config_.head_dim;
    threads_.run(config_.kv_heads, [&](int head, int /*worker*/) {
      HeadMeter& meter = heads_[static_cast<std::size_t>(layer * config_.kv_heads + head)];
      if (first_row == 0) meter.begin_window();
      const std::ptrdiff_t offset = skipped * stride + std::ptrdiff_t{head} * config_.head_dim;
      meter.add(key + offset, value + offset, rows - skipped, stride, formats_, isa_);
    });
  }

  std::vector<LayerActivations> layers() const {
    std::vector<LayerActivations> result(static_cast<std::size_t>(config_.layers));
    const auto kv_heads = static_cast<std::size_t>(config_.kv_heads);
    threads_.run(config_.layers, [&](int layer, int /*worker*/) {
      std::vector<const GramMatrix*> keys;
      std::vector<const GramMatrix*> values;
      std::vector<const std::vector<ErrorSum>*> key_errors;
      std::vector<const std::vector<ErrorSum>*> value_errors;
      for (std::size_t head = 0; head < kv_heads; ++head) {
        const HeadMeter& meter = heads_[static_cast<std::size_t>(layer) * kv_heads + head];
        keys.push_back(&meter.key());
        values.push_back(&meter.value());
        key_errors.push_back(&meter.errors().key);
        value_errors.push_back(&meter.errors().value);
      }
      result[static_cast<std::size_t>(layer)] = {summarize(keys, key_errors),
                                                 summarize(values, value_errors)};
    });
    return result;
  }

 private:
  const ModelConfig& config_;
  ThreadPool& threads_;
  std::vector<PageFormat> formats_;
  int sinks_;
  Isa isa_;
  std::vector<HeadMeter> heads_;  // [layers, kv_heads]
};

}  // namespace

Result<Activations> measure_activations(Engine& engine, std::span<const TokenWindow> windows,
                                        std::span<const LayerSpec> formats, int sinks, Isa isa,
                                        const std::shared_ptr<PagePool>& pool) {
  Activations result;
  std::vector<PageFormat> page_formats;
  for (const LayerSpec& spec : formats) {
    KVQ_ASSIGN_OR_RETURN(PageFormat format, PageFormat::create(spec, engine.config().head_dim));
    page_formats.push_back(format);
    result.formats.push_back(to_string(spec));
  }
  ActivationMeter meter(engine, std::move(page_formats), sinks, isa);
  const auto exact =
      std::make_shared<const CacheSpec>(engine.cache_spec(LayerSpec{}, 0, kPageTokens));
  Progress progress("activations", static_cast<long>(windows.size()));
  for (const TokenWindow& window : windows) {
    const auto tokens = static_cast<std::int64_t>(window.size());
    if (tokens < sinks + kPageTokens) {
      return fail("a text window needs {} tokens, found {}", sinks + kPageTokens, tokens);
    }
    KVQ_ASSIGN_OR_RETURN(Sequence sequence, engine.new_sequence(exact, pool));
    const Chunk chunk{&sequence, window};
    PassOptions options;
    options.tap = &meter;
    KVQ_RETURN_IF_ERROR(engine.forward({&chunk, 1}, LogitRows::kLast, options));
    result.tokens += tokens - sinks;
    progress.advance();
  }
  result.layers = meter.layers();
  return result;
}

}  // namespace kvq
