#include "kvq/analysis/output_error.h"

#include <algorithm>

#include "kvq/analysis/divergence.h"
#include "kvq/base/progress.h"

namespace kvq {
namespace {

// Keeps the inputs of every layer of one window.
class InputTap : public PassTap {
 public:
  InputTap(const ModelConfig& config, std::size_t tokens)
      : width_(static_cast<std::size_t>(config.hidden)),
        inputs_(static_cast<std::size_t>(config.layers), std::vector<float>(tokens * width_)) {}

  void layer_input(int layer, int first_row, int rows, const float* hidden) override {
    std::copy_n(hidden, static_cast<std::size_t>(rows) * width_,
                inputs_[static_cast<std::size_t>(layer)].begin() +
                    static_cast<std::ptrdiff_t>(static_cast<std::size_t>(first_row) * width_));
  }

  void layer_heads(int /*layer*/, int /*first_row*/, int /*rows*/, const float* /*query*/,
                   const float* /*key*/, const float* /*value*/) override {}

  // [tokens, hidden]
  std::span<const float> inputs(int layer) const {
    return inputs_[static_cast<std::size_t>(layer)];
  }

 private:
  std::size_t width_;
  std::vector<std::vector<float>> inputs_;  // of each layer, [tokens, hidden]
};

class WindowMeter {
 public:
  WindowMeter(Engine& engine, const CacheSpec& base, std::shared_ptr<PagePool> pool,
              const TokenWindow& tokens)
      : engine_(engine),
        base_(base),
        pool_(std::move(pool)),
        tokens_(tokens),
        tap_(engine.config(), tokens.size()),
        reference_(engine.config().vocabulary, engine.threads()) {}

  // The 16-bit pass that others are compared with, then the base's.
  Result<std::span<const float>> read_base() {
    CacheSpec exact = base_;
    std::ranges::fill(exact.layers, LayerSpec{});
    KVQ_ASSIGN_OR_RETURN(const auto logits, run(exact, 0, nullptr));
    reference_.keep(logits);
    KVQ_ASSIGN_OR_RETURN(const auto changed, run(base_, 0, &tap_));
    return reference_.divergences(changed);
  }

  Result<std::span<const float>> read_change(const FormatChange& change) {
    const int layer = change.tensor / 2;
    CacheSpec changed = base_;
    tensor_spec(changed, change.tensor) = change.spec;
    changed.layers.erase(changed.layers.begin(), changed.layers.begin() + layer);
    KVQ_ASSIGN_OR_RETURN(const auto logits, run(changed, layer, nullptr));
    return reference_.divergences(logits);
  }

 private:
  Result<std::span<const float>> run(const CacheSpec& spec, int first_layer, PassTap* tap) {
    KVQ_ASSIGN_OR_RETURN(Sequence sequence,
                         engine_.new_sequence(std::make_shared<const CacheSpec>(spec), pool_));
    const Chunk chunk{&sequence, tokens_};
    PassOptions options;
    options.first_layer = first_layer;
    if (first_layer > 0) options.hidden = tap_.inputs(first_layer);
    options.tap = tap;
    return engine_.forward({&chunk, 1}, LogitRows::kAll, options);
  }

  Engine& engine_;
  const CacheSpec& base_;
  std::shared_ptr<PagePool> pool_;
  const TokenWindow& tokens_;
  InputTap tap_;  // of the base
  ReferenceOutput reference_;
};

}  // namespace

TensorSpec& tensor_spec(CacheSpec& spec, int tensor) {
  LayerSpec& layer = spec.layers[static_cast<std::size_t>(tensor / 2)];
  return tensor % 2 == 0 ? layer.key : layer.value;
}

const TensorSpec& tensor_spec(const CacheSpec& spec, int tensor) {
  const LayerSpec& layer = spec.layers[static_cast<std::size_t>(tensor / 2)];
  return tensor % 2 == 0 ? layer.key : layer.value;
}

Status measure_output_error(Engine& engine, std::span<const TokenWindow> windows,
                            const CacheSpec& base, std::span<const FormatChange> changes,
                            const std::shared_ptr<PagePool>& pool, const DivergenceSink& sink) {
  Progress progress("output error", static_cast<long>(windows.size() * (changes.size() + 1)));
  for (std::size_t window = 0; window < windows.size(); ++window) {
    WindowMeter meter(engine, base, pool, windows[window]);
    KVQ_ASSIGN_OR_RETURN(const auto unchanged, meter.read_base());
    sink(kUnchanged, static_cast<int>(window), unchanged);
    progress.advance();
    for (std::size_t change = 0; change < changes.size(); ++change) {
      KVQ_ASSIGN_OR_RETURN(const auto changed, meter.read_change(changes[change]));
      sink(static_cast<int>(change), static_cast<int>(window), changed);
      progress.advance();
    }
  }
  return {};
}

Result<std::vector<double>> mean_output_errors(Engine& engine, std::span<const TokenWindow> windows,
                                               const CacheSpec& base,
                                               std::span<const FormatChange> changes,
                                               const std::shared_ptr<PagePool>& pool) {
  std::vector<double> sums(changes.size() + 1);
  double rows = 0;
  KVQ_RETURN_IF_ERROR(
      measure_output_error(engine, windows, base, changes, pool,
                           [&](int change, int /*window*/, std::span<const float> divergences) {
                             double& sum = sums[static_cast<std::size_t>(change + 1)];
                             for (const float divergence : divergences)
                               sum += static_cast<double>(divergence);
                             if (change == kUnchanged)
                               rows += static_cast<double>(divergences.size());
                           }));
  for (double& sum : sums) sum /= rows;
  return sums;
}

}  // namespace kvq
