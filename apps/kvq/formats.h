// The cache formats that --kv and --plan name, for one model.
#pragma once

#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "apps/kvq/options.h"

namespace kvq {

struct CacheFormat {
  std::string name;  // as typed: a format, or a plan's file
  std::shared_ptr<const CacheSpec> spec;
};

// Those of --kv, then those of --plan; `defaults` where there are neither. Fails on a format that
// the model's shape cannot have and on a plan for another model. `directory` holds the model of
// `config`.
Result<std::vector<CacheFormat>> cache_formats(const CacheOptions& options,
                                               const ModelConfig& config,
                                               const std::filesystem::path& directory,
                                               const std::vector<std::string>& defaults);

// The kernels that read the formats of all layers, each once: "avx512 dot, avx512 tile".
std::string kernel_names(const Engine& engine, const CacheSpec& spec, bool decode);

}  // namespace kvq
