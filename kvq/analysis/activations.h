// What a model's keys and values are like, and what each width loses of them: measured while the
// model reads text, without keeping the activations.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "kvq/analysis/stored_error.h"
#include "kvq/eval/windows.h"
#include "kvq/runtime/engine.h"

namespace kvq {

// One number for every kv head of a layer.
struct HeadRange {
  double mean = 0;
  double low = 0;
  double high = 0;
};

struct TensorActivations {
  HeadRange root_mean_square;
  // Singular values of [tokens, head_dim] divided by sqrt(tokens), largest first: [head_dim]
  std::vector<HeadRange> spectrum;
  std::vector<StoredError> errors;  // of each format, over all heads
};

struct LayerActivations {
  TensorActivations key;  // after RoPE, as it is cached
  TensorActivations value;
};

struct Activations {
  std::int64_t tokens = 0;           // that norms and spectra are taken over
  std::vector<std::string> formats;  // that errors are measured of: "k2v2", "k3v3", ...
  std::vector<LayerActivations> layers;
};

// Reads every window on a 16-bit cache. The first `sinks` tokens of each are left out: caches keep
// them in 16 bits, and their keys are often unlike all others. Errors are taken over whole pages of
// 64 tokens behind them.
Result<Activations> measure_activations(Engine& engine, std::span<const TokenWindow> windows,
                                        std::span<const LayerSpec> formats, int sinks, Isa isa,
                                        const std::shared_ptr<PagePool>& pool);

}  // namespace kvq
