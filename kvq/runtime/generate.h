// Token by token: sampling and the generation loop.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <random>
#include <span>
#include <vector>

#include "kvq/runtime/engine.h"

namespace kvq {

struct SamplingOptions {
  float temperature = 0;  // 0 = greedy
  int top_k = 0;          // 0 = off
  float top_p = 1;        // 1 = off
  std::uint64_t seed = 0;
};

// Picks a token from logits [vocabulary]: temperature, then top-k, then top-p. Greedy takes the
// first of equal maxima.
class Sampler {
 public:
  explicit Sampler(const SamplingOptions& options);
  int pick(std::span<const float> logits);

 private:
  SamplingOptions options_;
  std::mt19937_64 random_;
};

struct GenerateOptions {
  int max_new_tokens = 128;
  SamplingOptions sampling;
  bool ignore_stop_tokens = false;
  const std::atomic<bool>* interrupted = nullptr;  // polled between steps; the partial result stays
  // Called with (prompt index, token) for every new token, stop tokens left out.
  std::function<void(int, int)> on_token;
};

struct Generation {
  std::vector<std::vector<int>> tokens;  // new tokens of each prompt, stop token left out
  double prefill_seconds = 0;
  double decode_seconds = 0;
  std::int64_t prefill_tokens = 0;
  std::int64_t decode_tokens = 0;  // tokens made by decode steps (the first comes from the prefill)
  std::int64_t cached_tokens = 0;  // over all sequences, at the end
  ByteCount bytes;                 // of all sequences, at the end
};

// Continues every prompt (token ids, not empty) as one batch on caches of format `spec` that live
// in `pool`. Prompts longer than the model's context are an error; generation stops at the context.
Result<Generation> generate(Engine& engine, const std::vector<std::vector<int>>& prompts,
                            const std::shared_ptr<const CacheSpec>& spec,
                            const std::shared_ptr<PagePool>& pool, const GenerateOptions& options);

}  // namespace kvq
