// What a change of the cache format does to the model's output.
#pragma once

#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "kvq/cache/cache_spec.h"
#include "kvq/eval/windows.h"
#include "kvq/runtime/engine.h"

namespace kvq {

// One tensor of a cache in another format: tensor 2l = keys of layer l, 2l + 1 = values.
struct FormatChange {
  int tensor = 0;
  TensorSpec spec;
};

// Takes the KL divergence (16-bit cache || changed cache, nats) of the next-token distribution
// after every position of a window. `change`: index of the change, or kUnchanged for the base
// itself.
inline constexpr int kUnchanged = -1;
using DivergenceSink = std::function<void(int change, int window, std::span<const float> rows)>;

// Every change alone, made to `base`, on every window. A change in layer l costs a pass over the
// layers from l on: the inputs of layer l are those of the base. Window by window, changes in their
// order, the base first. Memory: one window's logits three times and its inputs of every layer.
Status measure_output_error(Engine& engine, std::span<const TokenWindow> windows,
                            const CacheSpec& base, std::span<const FormatChange> changes,
                            const std::shared_ptr<PagePool>& pool, const DivergenceSink& sink);

// Means over all positions of all windows: that of the base, then that of each change.
Result<std::vector<double>> mean_output_errors(Engine& engine, std::span<const TokenWindow> windows,
                                               const CacheSpec& base,
                                               std::span<const FormatChange> changes,
                                               const std::shared_ptr<PagePool>& pool);

TensorSpec& tensor_spec(CacheSpec& spec, int tensor);
const TensorSpec& tensor_spec(const CacheSpec& spec, int tensor);

}  // namespace kvq
