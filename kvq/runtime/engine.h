// A loaded model that runs on packed caches.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "kvq/attention/attention.h"
#include "kvq/base/status.h"
#include "kvq/cache/sequence.h"
#include "kvq/model/config.h"
#include "kvq/runtime/pass_tap.h"

namespace kvq {

// The type of the weights in matrix products; activations stay float32 between operations.
enum class ComputeType : std::uint8_t {
  kAuto,  // bf16 where the checkpoint is bf16 and the machine multiplies bf16, else float32
  kFloat32,
  kBFloat16,
};

struct EngineOptions {
  int threads = 0;  // 0 = all that the process may use
  ComputeType compute = ComputeType::kAuto;
  Isa isa = Isa::kPortable;
  Precision precision = Precision::kDefault;
  bool exact_prefill = false;
};

// Tokens to append to one sequence.
struct Chunk {
  Sequence* sequence;
  std::span<const int> tokens;
};

enum class LogitRows : std::uint8_t { kLast, kAll };

// A pass over a part of the layers, or one that is looked into.
struct PassOptions {
  // Layers [first_layer, layers) run on the inputs of the first of them, and the sequences hold the
  // caches of these layers alone: their layer 0 is first_layer.
  int first_layer = 0;
  std::span<const float> hidden;  // [tokens of all chunks, hidden]; empty for first_layer = 0
  PassTap* tap = nullptr;
};

class Engine {
 public:
  static Result<Engine> load(const std::filesystem::path& directory, const EngineOptions& options);
  Engine(Engine&&) noexcept;
  Engine& operator=(Engine&&) noexcept;
  ~Engine();

  const ModelConfig& config() const;
  ThreadPool& threads();
  std::string compute_name() const;  // "float32" or "bfloat16"
  // Which attention kernel decodes (prefills) pages of this format.
  std::string kernel_name(const PageFormat& format, bool decode) const;

  // A cache spec with this model's shape and one format for all layers.
  CacheSpec cache_spec(const LayerSpec& spec, int sinks, int window) const;
  // The spec has the model's layers, or as many of the last ones as a pass over a part runs.
  Result<Sequence> new_sequence(std::shared_ptr<const CacheSpec> spec,
                                std::shared_ptr<PagePool> pool) const;

  // Appends every chunk to its sequence and computes next-token logits, [rows, vocabulary]: one row
  // a chunk (kLast: of its last token) or one a token (kAll), chunks in order. Long chunks are
  // processed in pieces. On an error every sequence is as it was before.
  // The result is valid until the next call.
  Result<std::span<const float>> forward(std::span<const Chunk> chunks, LogitRows rows,
                                         const PassOptions& options = {});

 private:
  struct State;
  explicit Engine(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace kvq
