#include "kvq/runtime/generate.h"

#include <algorithm>
#include <chrono>
#include <optional>

namespace kvq {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// One prompt on its way.
struct Active {
  int prompt;
  Sequence sequence;
  Sampler sampler;
  int token = 0;  // the newest, not yet in the sequence
};

class Loop {
 public:
  Loop(Engine& engine, const GenerateOptions& options) : engine_(engine), options_(options) {}

  Result<Generation> run(const std::vector<std::vector<int>>& prompts,
                         const std::shared_ptr<const CacheSpec>& spec,
                         const std::shared_ptr<PagePool>& pool) {
    result_.tokens.resize(prompts.size());
    for (std::size_t i = 0; i < prompts.size(); ++i) {
      KVQ_ASSIGN_OR_RETURN(Sequence sequence, engine_.new_sequence(spec, pool));
      SamplingOptions sampling = options_.sampling;
      sampling.seed += i;
      active_.push_back({static_cast<int>(i), std::move(sequence), Sampler(sampling)});
    }
    KVQ_RETURN_IF_ERROR(prefill(prompts));
    KVQ_RETURN_IF_ERROR(decode());
    for (const Active& active : active_) count(active);
    return std::move(result_);
  }

 private:
  bool interrupted() const {
    return options_.interrupted != nullptr && options_.interrupted->load();
  }

  Status prefill(const std::vector<std::vector<int>>& prompts) {
    const Clock::time_point start = Clock::now();
    std::vector<Chunk> chunks;
    for (Active& active : active_) {
      const std::vector<int>& prompt = prompts[static_cast<std::size_t>(active.prompt)];
      chunks.push_back({&active.sequence, prompt});
      result_.prefill_tokens += static_cast<std::int64_t>(prompt.size());
    }
    KVQ_RETURN_IF_ERROR(step(chunks));
    result_.prefill_seconds = seconds_since(start);
    return {};
  }

  Status decode() {
    const Clock::time_point start = Clock::now();
    std::vector<Chunk> chunks;
    while (!active_.empty() && !interrupted()) {
      chunks.clear();
      for (Active& active : active_) chunks.push_back({&active.sequence, {&active.token, 1}});
      result_.decode_tokens += static_cast<std::int64_t>(active_.size());
      KVQ_RETURN_IF_ERROR(step(chunks));
    }
    result_.decode_seconds = seconds_since(start);
    return {};
  }

  // Runs the chunks of all active prompts and picks a token for each; those that are finished
  // leave.
  Status step(std::span<const Chunk> chunks) {
    if (options_.sampling.temperature <= 0 || options_.sampling.top_k == 1) {
      KVQ_ASSIGN_OR_RETURN(const auto tokens, engine_.likeliest(chunks));
      for (std::size_t i = 0; i < active_.size(); ++i) active_[i].token = tokens[i];
    } else {
      KVQ_ASSIGN_OR_RETURN(const auto logits, engine_.forward(chunks, LogitRows::kLast));
      const auto vocabulary = static_cast<std::size_t>(engine_.config().vocabulary);
      for (std::size_t i = 0; i < active_.size(); ++i) {
        active_[i].token = active_[i].sampler.pick(logits.subspan(i * vocabulary, vocabulary));
      }
    }
    std::erase_if(active_, [this](Active& active) {
      const bool finished = take_token(active);
      if (finished) count(active);
      return finished;
    });
    return {};
  }

  // Whether the prompt is finished with its newest token.
  bool take_token(const Active& active) {
    const std::vector<int>& stops = engine_.config().stop_tokens;
    if (!options_.ignore_stop_tokens && std::ranges::count(stops, active.token) > 0) return true;
    std::vector<int>& tokens = result_.tokens[static_cast<std::size_t>(active.prompt)];
    tokens.push_back(active.token);
    if (options_.on_token) options_.on_token(active.prompt, active.token);
    return static_cast<int>(tokens.size()) >= options_.max_new_tokens ||
           active.sequence.length() >= engine_.config().context;
  }

  void count(const Active& active) {
    const ByteCount bytes = active.sequence.bytes();
    result_.cached_tokens += active.sequence.length();
    result_.bytes.pages += bytes.pages;
    result_.bytes.exact += bytes.exact;
    result_.bytes.allocated += bytes.allocated;
  }

  Engine& engine_;
  const GenerateOptions& options_;
  std::vector<Active> active_;
  Generation result_;
};

}  // namespace

Result<Generation> generate(Engine& engine, const std::vector<std::vector<int>>& prompts,
                            const std::shared_ptr<const CacheSpec>& spec,
                            const std::shared_ptr<PagePool>& pool, const GenerateOptions& options) {
  if (options.max_new_tokens < 1) {
    return fail("expected at least one new token, found {}", options.max_new_tokens);
  }
  for (std::size_t i = 0; i < prompts.size(); ++i) {
    const auto context = static_cast<std::size_t>(engine.config().context);
    if (prompts[i].empty()) return fail("prompt {} is empty", i);
    if (prompts[i].size() > context) {
      return fail("prompt {}: {} tokens exceed the model's context of {}", i, prompts[i].size(),
                  context);
    }
  }
  return Loop(engine, options).run(prompts, spec, pool);
}

}  // namespace kvq
