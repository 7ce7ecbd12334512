// A loaded model that runs on packed caches.
#pragma once

#include <atomic>
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

enum class Device : std::uint8_t { kCpu, kCuda };

// `precision` also decides, on a CUDA device, whether bf16 products take their inputs in two bf16
// terms, as the CPU does, or in one.
struct EngineOptions {
  Device device = Device::kCpu;
  int threads = 0;  // 0 = all that the process may use
  ComputeType compute = ComputeType::kAuto;
  Isa isa = Isa::kPortable;
  Precision precision = Precision::kDefault;
  bool exact_prefill = false;
  // Set by others to end long measurements: every pass fails from then on.
  const std::atomic<bool>* interrupted = nullptr;
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
  // A model with random bf16 weights, made on a CUDA device: for measurements.
  static Result<Engine> random(const ModelConfig& config, const EngineOptions& options);
  Engine(Engine&&) noexcept;
  Engine& operator=(Engine&&) noexcept;
  ~Engine();

  const ModelConfig& config() const;
  ThreadPool& threads();
  // An error once EngineOptions::interrupted is set.
  Status check_interrupt() const;
  std::string compute_name() const;  // "float32" or "bfloat16"
  // Which attention kernel decodes (prefills) pages of this format.
  std::string kernel_name(const PageFormat& format, bool decode) const;

  // A cache spec with this model's shape and one format for all layers.
  CacheSpec cache_spec(const LayerSpec& spec, int sinks, int window) const;
  // The spec has the model's layers, or as many of the last ones as a pass over a part runs.
  // Its caches lie in the memory of the engine's device; `pool` says how much they may take.
  Result<Sequence> new_sequence(std::shared_ptr<const CacheSpec> spec,
                                std::shared_ptr<PagePool> pool) const;

  // Appends every chunk to its sequence and computes next-token logits, [rows, vocabulary]: one row
  // a chunk (kLast: of its last token) or one a token (kAll), chunks in order. Long chunks are
  // processed in pieces. On an error every sequence is as it was before.
  // The result is valid until the next call.
  Result<std::span<const float>> forward(std::span<const Chunk> chunks, LogitRows rows,
                                         const PassOptions& options = {});

  // The likeliest token behind each chunk: forward() and the first of the largest logits, which
  // stay on the device. Valid until the next call.
  Result<std::span<const int>> likeliest(std::span<const Chunk> chunks);

  // Appends `tokens` tokens of random keys and values, which no model made, to a sequence: long
  // contexts to measure decoding with.
  Status fill(Sequence& sequence, int tokens, std::uint64_t seed);

 private:
  struct State;
  Result<std::size_t> compute(std::span<const Chunk> chunks, LogitRows rows,
                              const PassOptions& options);
  explicit Engine(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace kvq
