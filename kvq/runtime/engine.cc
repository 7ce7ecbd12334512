#include "kvq/runtime/engine.h"

#include <sched.h>

#include <algorithm>
#include <cmath>
#include <optional>
#include <random>
#include <thread>
#include <tuple>

#include "kvq/model/architecture.h"
#include "kvq/model/checkpoint.h"
#include "kvq/runtime/backend.h"
#include "kvq/runtime/cpu/cpu_attention.h"
#include "kvq/runtime/cpu/cpu_ops.h"
#include "kvq/runtime/forward_pass.h"
#include "kvq/runtime/pass_cutter.h"
#include "kvq/runtime/weights.h"

namespace kvq {
namespace {

// Tokens of one pass: enough rows for the matrix products to run at full speed, few enough that the
// activations stay in the caches.
constexpr int kPassRows = 512;

int usable_threads() {
#if defined(__linux__)
  cpu_set_t allowed;
  if (sched_getaffinity(0, sizeof(allowed), &allowed) == 0) return CPU_COUNT(&allowed);
#endif
  return std::max(static_cast<int>(std::thread::hardware_concurrency()), 1);
}

bool weights_are_bfloat16(const ModelConfig& config, const Checkpoint& checkpoint) {
  const std::string name = weight_name(info(config.architecture).modules.query, 0);
  const auto found = checkpoint.tensors().find(name);
  return found != checkpoint.tensors().end() && found->second.type == DataType::kBFloat16;
}

bool chosen_bfloat16(const EngineOptions& options, bool weights_are_bfloat16) {
  switch (options.compute) {
    case ComputeType::kFloat32:
      return false;
    case ComputeType::kBFloat16:
      return true;
    case ComputeType::kAuto:
      break;
  }
  const bool multiplies = options.device == Device::kCuda || multiplies_bfloat16();
  return multiplies && weights_are_bfloat16;
}

// What forward() needs to put a sequence back: nothing but its length for a chunk of one pass,
// nothing at all for an empty sequence, a fork otherwise (a cut that deep would not be exact).
struct Restore {
  Sequence* sequence;
  std::int64_t length;
  int passes = 0;  // that hold tokens of the chunk
  std::optional<Sequence> fork;

  void operator()() {
    if (sequence->length() == length) return;
    if (fork) {
      *sequence = *std::move(fork);
    } else if (length == 0) {
      sequence->reset();
    } else {
      std::ignore = sequence->truncate(length);  // cannot fail: no chunk is open
    }
  }
};

Result<std::vector<Restore>> prepare_restores(std::span<const Chunk> chunks,
                                              std::span<const std::vector<PassItem>> passes) {
  std::vector<Restore> restores;
  if (passes.size() == 1) return restores;  // a pass puts its sequences back by itself
  for (const Chunk& chunk : chunks) {
    Restore restore{chunk.sequence, chunk.sequence->length(), 0, std::nullopt};
    for (const std::vector<PassItem>& pass : passes) {
      restore.passes +=
          static_cast<int>(std::ranges::count(pass, chunk.sequence, &PassItem::sequence));
    }
    if (restore.passes > 1 && restore.length > 0) {
      KVQ_ASSIGN_OR_RETURN(restore.fork, chunk.sequence->fork());
    }
    restores.push_back(std::move(restore));
  }
  return restores;
}

// `model_layers`: those that the spec is to have.
Status check_shape(const CacheSpec& spec, const ModelConfig& config, int model_layers) {
  const auto layers = static_cast<int>(spec.layers.size());
  if (layers == model_layers && spec.kv_heads == config.kv_heads &&
      spec.head_dim == config.head_dim) {
    return {};
  }
  return fail(
      "cache of {} layers, {} kv heads, head_dim {}: the model needs {} layers, {} kv heads, "
      "head_dim {}",
      layers, spec.kv_heads, spec.head_dim, model_layers, config.kv_heads, config.head_dim);
}

Status check_chunks(std::span<const Chunk> chunks, const ModelConfig& config, int first_layer) {
  std::vector<const Sequence*> sequences;
  for (const Chunk& chunk : chunks) {
    if (chunk.tokens.empty()) return fail("forward: expected at least one token in every chunk");
    KVQ_RETURN_IF_ERROR(check_shape(chunk.sequence->spec(), config, config.layers - first_layer));
    const std::int64_t length =
        chunk.sequence->length() + static_cast<std::int64_t>(chunk.tokens.size());
    if (length > config.context) {
      return fail("{} tokens behind {} exceed the model's context of {}", chunk.tokens.size(),
                  chunk.sequence->length(), config.context);
    }
    for (const int token : chunk.tokens) {
      if (token < 0 || token >= config.vocabulary) {
        return fail("token id {}: expected 0 to {}", token, config.vocabulary - 1);
      }
    }
    sequences.push_back(chunk.sequence);
  }
  std::ranges::sort(sequences);
  if (std::ranges::adjacent_find(sequences) != sequences.end()) {
    return fail("forward: expected different sequences, found one twice");
  }
  return {};
}

Status check_options(const PassOptions& options, std::span<const Chunk> chunks,
                     const ModelConfig& config) {
  if (options.first_layer < 0 || options.first_layer >= config.layers) {
    return fail("forward: first layer {}: expected 0 to {}", options.first_layer,
                config.layers - 1);
  }
  std::size_t numbers = 0;
  if (options.first_layer > 0) {
    for (const Chunk& chunk : chunks) numbers += chunk.tokens.size();
    numbers *= static_cast<std::size_t>(config.hidden);
  }
  if (options.hidden.size() != numbers) {
    return fail("forward from layer {}: inputs of {} numbers: expected {}", options.first_layer,
                options.hidden.size(), numbers);
  }
  return {};
}

}  // namespace

struct Engine::State {
  State(const EngineOptions& engine_options, ModelConfig model_config)
      : options(engine_options),
        config(std::move(model_config)),
        threads(engine_options.threads > 0 ? engine_options.threads : usable_threads()) {}

  Status load(const TensorSource& source, bool bfloat16_weights);
  Result<Backend> create_backend(bool bfloat16);
  // The same rows, of an open chunk, to all layers.
  Status append(const PassItem& item, const float* key, const float* value) const;

  const EngineOptions options;
  const ModelConfig config;
  std::optional<Checkpoint> checkpoint;
  ThreadPool threads;
  std::unique_ptr<Ops> ops;
  ModelWeights weights;
  std::unique_ptr<CachedAttention> attention;
  std::optional<ForwardPass> pass;
  DeviceFloats logits;
  std::size_t logits_capacity = 0;
};

Result<Backend> Engine::State::create_backend(bool bfloat16) {
  const AttentionShape shape = {config.query_heads, config.kv_heads, config.head_dim,
                                1 / std::sqrt(static_cast<float>(config.head_dim))};
  if (options.device == Device::kCuda) {
    return create_cuda_backend(shape, options, bfloat16, kPassRows);
  }
  Backend backend;
  KVQ_ASSIGN_OR_RETURN(backend.ops, create_cpu_ops(bfloat16, options.isa, threads));
  KVQ_ASSIGN_OR_RETURN(
      backend.attention,
      create_cpu_attention(shape, {options.isa, options.precision, options.exact_prefill},
                           threads));
  return backend;
}

Status Engine::State::load(const TensorSource& source, bool bfloat16_weights) {
  KVQ_ASSIGN_OR_RETURN(Backend backend, create_backend(chosen_bfloat16(options, bfloat16_weights)));
  ops = std::move(backend.ops);
  attention = std::move(backend.attention);
  KVQ_ASSIGN_OR_RETURN(weights, load_weights(config, source, *ops));
  pass.emplace(config, weights, *ops, *attention);
  return {};
}

Status Engine::State::append(const PassItem& item, const float* key, const float* value) const {
  KVQ_RETURN_IF_ERROR(attention->begin({&item, 1}));
  for (int layer = 0; layer < config.layers; ++layer) {
    KVQ_RETURN_IF_ERROR(attention->append(layer, key, value));
  }
  KVQ_RETURN_IF_ERROR(ops->finish());
  return attention->finish();
}

Engine::Engine(std::unique_ptr<State> state) : state_(std::move(state)) {}
Engine::Engine(Engine&&) noexcept = default;
Engine& Engine::operator=(Engine&&) noexcept = default;
Engine::~Engine() = default;

Result<Engine> Engine::load(const std::filesystem::path& directory, const EngineOptions& options) {
  KVQ_ASSIGN_OR_RETURN(ModelConfig config, read_config(directory));
  KVQ_ASSIGN_OR_RETURN(Checkpoint checkpoint, Checkpoint::open(directory));
  const bool bfloat16_weights = weights_are_bfloat16(config, checkpoint);
  auto state = std::make_unique<State>(options, std::move(config));
  state->checkpoint = std::move(checkpoint);
  const auto source = [&](std::string_view tensor, const std::vector<std::int64_t>& shape) {
    return state->checkpoint->tensor(tensor, shape);
  };
  KVQ_RETURN_IF_ERROR(state->load(source, bfloat16_weights));
  return Engine(std::move(state));
}

Result<Engine> Engine::random(const ModelConfig& config, const EngineOptions& options) {
  if (options.device != Device::kCuda) {
    return fail("a model of random weights: expected --device cuda");
  }
  auto state = std::make_unique<State>(options, config);
  const auto source = [](std::string_view, const std::vector<std::int64_t>& shape) {
    return Result<TensorRef>(TensorRef{DataType::kBFloat16, shape, nullptr});
  };
  KVQ_RETURN_IF_ERROR(state->load(source, true));
  return Engine(std::move(state));
}

const ModelConfig& Engine::config() const { return state_->config; }
ThreadPool& Engine::threads() { return state_->threads; }
std::string Engine::compute_name() const { return state_->ops->compute_name(); }

std::string Engine::kernel_name(const PageFormat& format, bool decode) const {
  return state_->attention->kernel_name(format, decode);
}

CacheSpec Engine::cache_spec(const LayerSpec& spec, int sinks, int window) const {
  const ModelConfig& config = state_->config;
  CacheSpec result = CacheSpec::uniform(spec, config.layers, config.kv_heads, config.head_dim);
  result.sinks = sinks;
  result.window = window;
  return result;
}

Result<Sequence> Engine::new_sequence(std::shared_ptr<const CacheSpec> spec,
                                      std::shared_ptr<PagePool> pool) const {
  const ModelConfig& config = state_->config;
  // Any number of the last layers.
  const int layers = std::clamp(static_cast<int>(spec->layers.size()), 1, config.layers);
  KVQ_RETURN_IF_ERROR(check_shape(*spec, config, layers));
  return state_->attention->new_sequence(std::move(spec), std::move(pool));
}

Status Engine::check_interrupt() const {
  const std::atomic<bool>* interrupted = state_->options.interrupted;
  if (interrupted != nullptr && interrupted->load()) return fail("interrupted");
  return {};
}

// Leaves the logits in state.logits and returns their rows.
Result<std::size_t> Engine::compute(std::span<const Chunk> chunks, LogitRows rows,
                                    const PassOptions& options) {
  State& state = *state_;
  KVQ_RETURN_IF_ERROR(check_interrupt());
  KVQ_RETURN_IF_ERROR(check_options(options, chunks, state.config));
  KVQ_RETURN_IF_ERROR(check_chunks(chunks, state.config, options.first_layer));
  // The queries of an exact prefill read all of their chunk's rows, so it must not be cut.
  const auto passes = cut_passes(chunks, rows, state.options.exact_prefill ? 0 : kPassRows);
  std::size_t count = 0;
  for (const auto& pass : passes) {
    for (const PassItem& item : pass) count += static_cast<std::size_t>(item.logit_rows);
  }
  const auto vocabulary = static_cast<std::size_t>(state.config.vocabulary);
  if (count > state.logits_capacity) {
    KVQ_ASSIGN_OR_RETURN(state.logits, state.ops->allocate(count * vocabulary));
    state.logits_capacity = count;
  }
  KVQ_ASSIGN_OR_RETURN(std::vector<Restore> restores, prepare_restores(chunks, passes));
  float* logits = state.logits.get();
  int first_row = 0;
  for (const auto& pass : passes) {
    if (Status status = state.pass->run(pass, options, first_row, logits); !status) {
      for (Restore& restore : restores) restore();
      return tl::unexpected(std::move(status).error());
    }
    for (const PassItem& item : pass) {
      logits += static_cast<std::size_t>(item.logit_rows) * vocabulary;
      first_row += static_cast<int>(item.tokens.size());
    }
  }
  return count;
}

Result<std::span<const float>> Engine::forward(std::span<const Chunk> chunks, LogitRows rows,
                                               const PassOptions& options) {
  KVQ_ASSIGN_OR_RETURN(const std::size_t count, compute(chunks, rows, options));
  const std::size_t numbers = count * static_cast<std::size_t>(state_->config.vocabulary);
  return std::span<const float>(state_->ops->to_host(state_->logits.get(), numbers), numbers);
}

Result<std::span<const int>> Engine::likeliest(std::span<const Chunk> chunks) {
  KVQ_ASSIGN_OR_RETURN(const std::size_t count, compute(chunks, LogitRows::kLast, {}));
  return state_->ops->largest(state_->logits.get(), static_cast<int>(count),
                              state_->config.vocabulary);
}

Status Engine::fill(Sequence& sequence, int tokens, std::uint64_t seed) {
  State& state = *state_;
  KVQ_RETURN_IF_ERROR(check_shape(sequence.spec(), state.config, state.config.layers));
  const auto width = static_cast<std::size_t>(state.config.kv_heads * state.config.head_dim);
  const std::size_t count = 2 * kPassRows * width;
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> numbers(count);
  for (float& number : numbers) number = normal(random);
  KVQ_ASSIGN_OR_RETURN(const DeviceFloats rows, state.ops->allocate(count));
  state.ops->from_host(numbers.data(), count, rows.get());
  const std::vector<int> ids(kPassRows);
  // The last token alone, as if it had been decoded: the rows that only a long chunk needs go.
  for (int done = 0; done < tokens;) {
    const int chunk = std::min(kPassRows, std::max(tokens - done - 1, 1));
    const PassItem item{&sequence, {ids.data(), static_cast<std::size_t>(chunk)}, 0};
    KVQ_RETURN_IF_ERROR(sequence.begin_chunk(chunk));
    if (Status status = state.append(item, rows.get(), rows.get() + kPassRows * width); !status) {
      sequence.abort_chunk();
      return status;
    }
    done += chunk;
  }
  return {};
}

}  // namespace kvq
