// Options that several subcommands share.
#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "kvq/base/cpu.h"
#include "kvq/base/status.h"
#include "kvq/cache/cache_spec.h"
#include "kvq/cache/page_pool.h"
#include "kvq/eval/windows.h"
#include "kvq/model/tokenizer.h"
#include "kvq/runtime/engine.h"

namespace kvq {

// The format that commands take where --kv names none.
inline constexpr const char* kDefaultSpec = "k4v2";

// [MODEL]
struct ModelOptions {
  std::string model;  // as typed; empty = the embedded demo model

  void add(CLI::App& app);
  Result<std::filesystem::path> find() const;
  std::string label() const;  // for tables
};

// --threads, --isa, --device, --prefill
struct MachineOptions {
  int threads = 0;
  std::string isa;
  std::string device = "cpu";
  std::string prefill = "packed";

  void add_threads(CLI::App& app);
  void add_isa(CLI::App& app);
  void add_device(CLI::App& app);
  void add_prefill(CLI::App& app);

  int thread_count() const;
  Result<Isa> chosen_isa() const;
  Result<EngineOptions> engine_options() const;
};

// --kv, --plan, --window, --sinks, --memory
struct CacheOptions {
  std::vector<std::string> specs;
  std::vector<std::string> plans;  // files
  int window = 64;
  int sinks = 4;
  std::uint64_t memory = 0;  // bytes; 0 = no limit
  const CLI::Option* window_option = nullptr;
  const CLI::Option* sinks_option = nullptr;

  // `several`: --kv may be repeated.
  void add(CLI::App& app, bool several);
  void add_spec(CLI::App& app, bool several);
  void add_plan(CLI::App& app, bool several);
  void add_exact_rows(CLI::App& app);
  void add_memory(CLI::App& app, const std::string& text);

  // The formats named, or those of `defaults`.
  std::vector<LayerSpec> layer_specs(const std::vector<std::string>& defaults) const;
  std::shared_ptr<PagePool> pool() const;
};

// --kv-heads, --query-heads, --head-dim of a benchmark without a model; the help states the values
// that these have now.
void add_heads(CLI::App& app, int& kv_heads, int& query_heads, int& head_dim);

// A loaded model.
struct LoadedModel {
  Engine engine;
  Tokenizer tokenizer;
};
Result<LoadedModel> load_model(const ModelOptions& model, const MachineOptions& machine);

// Fails on a spec that this model's shape cannot have.
Result<std::shared_ptr<const CacheSpec>> make_cache_spec(const Engine& engine,
                                                         const LayerSpec& layer,
                                                         const CacheOptions& options);

}  // namespace kvq
