// kvq bench generate: prompt and decode speed of a model on several formats, in turns.
#include <algorithm>
#include <chrono>
#include <random>

#include "apps/kvq/command.h"
#include "apps/kvq/formats.h"
#include "apps/kvq/options.h"
#include "apps/kvq/output.h"
#include "apps/kvq/random_model.h"
#include "apps/kvq/samples.h"
#include "kvq/base/progress.h"
#include "kvq/runtime/generate.h"

namespace kvq {
namespace {

struct BenchGenerateOptions {
  ModelOptions model;
  MachineOptions machine;
  CacheOptions cache;
  JsonOption json;
  std::string random_model;
  bool fill = false;
  bool largest_batch = false;
  int prompt_tokens = 1024;
  int new_tokens = 128;
  int batch = 1;
  int rounds = 5;
  std::uint64_t seed = 0;
};

struct FormatSpeed {
  std::string name;
  std::shared_ptr<const CacheSpec> spec;
  std::string kernel;
  Samples prefill;  // tokens a second, one a round
  Samples decode;
  ByteCount bytes;
  std::int64_t bytes_16bit = 0;
  int largest_batch = 0;  // sequences that fit; 0: not asked
};

struct BenchModel {
  Engine engine;
  std::filesystem::path directory;  // empty for a random model
};

Result<BenchModel> open_model(const BenchGenerateOptions& options) {
  if (options.random_model.empty()) {
    KVQ_ASSIGN_OR_RETURN(LoadedModel model, load_model(options.model, options.machine));
    KVQ_ASSIGN_OR_RETURN(const std::filesystem::path directory, options.model.find());
    return BenchModel{std::move(model.engine), directory};
  }
  KVQ_ASSIGN_OR_RETURN(const EngineOptions machine, options.machine.engine_options());
  KVQ_ASSIGN_OR_RETURN(const ModelConfig config, random_model_config(options.random_model));
  KVQ_ASSIGN_OR_RETURN(Engine engine, Engine::random(config, machine));
  return BenchModel{std::move(engine), {}};
}

std::string label(const BenchGenerateOptions& options) {
  return options.random_model.empty() ? options.model.label() : options.random_model + " (random)";
}

// The same random tokens for every format and round.
std::vector<std::vector<int>> make_prompts(const BenchGenerateOptions& options, int vocabulary) {
  std::mt19937_64 random(options.seed);
  std::uniform_int_distribution<int> token(0, vocabulary - 1);
  std::vector<std::vector<int>> prompts(static_cast<std::size_t>(options.batch));
  for (std::vector<int>& prompt : prompts) {
    prompt.resize(static_cast<std::size_t>(options.prompt_tokens));
    for (int& id : prompt) id = token(random);
  }
  return prompts;
}

// Decoding from caches that were filled with random numbers.
Result<Generation> decode_filled(const BenchGenerateOptions& options, Engine& engine,
                                 const std::shared_ptr<const CacheSpec>& spec) {
  const auto pool = options.cache.pool();
  std::vector<Sequence> sequences;
  for (int i = 0; i < options.batch; ++i) {
    KVQ_ASSIGN_OR_RETURN(Sequence sequence, engine.new_sequence(spec, pool));
    KVQ_RETURN_IF_ERROR(engine.fill(sequence, options.prompt_tokens, options.seed + i));
    sequences.push_back(std::move(sequence));
  }
  std::vector<int> tokens(sequences.size());
  std::vector<Chunk> chunks;
  for (std::size_t i = 0; i < sequences.size(); ++i) {
    chunks.push_back({&sequences[i], {&tokens[i], 1}});
  }
  Generation made;
  constexpr int kWarmUp = 2;  // steps: kernels are loaded and recorded
  std::chrono::steady_clock::time_point start;
  for (int step = 0; step < kWarmUp + options.new_tokens; ++step) {
    if (step == kWarmUp) start = std::chrono::steady_clock::now();
    KVQ_ASSIGN_OR_RETURN(const auto next, engine.likeliest(chunks));
    std::ranges::copy(next, tokens.begin());
  }
  made.decode_seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  made.decode_tokens = static_cast<std::int64_t>(options.new_tokens) * options.batch;
  for (const Sequence& sequence : sequences) {
    const ByteCount bytes = sequence.bytes();
    made.cached_tokens += sequence.length();
    made.bytes.pages += bytes.pages;
    made.bytes.exact += bytes.exact;
    made.bytes.allocated += bytes.allocated;
  }
  return made;
}

// Sequences of the prompt's length that fit in the memory for caches, which is bounded.
Result<int> find_largest_batch(const BenchGenerateOptions& options, Engine& engine,
                               const std::shared_ptr<const CacheSpec>& spec) {
  constexpr int kMost = 4096;
  const auto pool = options.cache.pool();
  std::vector<Sequence> sequences;
  for (int i = 0; i < kMost; ++i) {
    KVQ_ASSIGN_OR_RETURN(Sequence sequence, engine.new_sequence(spec, pool));
    if (Status status = engine.fill(sequence, options.prompt_tokens, options.seed); !status) {
      if (sequences.empty()) return tl::unexpected(std::move(status).error());
      break;
    }
    sequences.push_back(std::move(sequence));
  }
  return static_cast<int>(sequences.size());
}

Status measure(const BenchGenerateOptions& options, Engine& engine,
               std::vector<FormatSpeed>& formats) {
  const auto prompts = make_prompts(options, engine.config().vocabulary);
  GenerateOptions generation;
  generation.max_new_tokens = options.new_tokens;
  generation.ignore_stop_tokens = true;
  Progress progress("generate", static_cast<long>(formats.size()) * options.rounds);
  for (int round = 0; round < options.rounds; ++round) {
    for (FormatSpeed& format : formats) {
      KVQ_ASSIGN_OR_RETURN(
          const Generation made,
          options.fill ? decode_filled(options, engine, format.spec)
                       : generate(engine, prompts, format.spec, options.cache.pool(), generation));
      format.prefill.add(
          options.fill ? 0 : static_cast<double>(made.prefill_tokens) / made.prefill_seconds);
      format.decode.add(static_cast<double>(made.decode_tokens) / made.decode_seconds);
      format.bytes = made.bytes;
      format.bytes_16bit = cache_bytes_16bit(*format.spec, made.cached_tokens);
      progress.advance();
    }
  }
  if (!options.largest_batch) return {};
  for (FormatSpeed& format : formats) {
    KVQ_ASSIGN_OR_RETURN(format.largest_batch, find_largest_batch(options, engine, format.spec));
  }
  return {};
}

void print(std::FILE* out, const BenchGenerateOptions& options, const Engine& engine, int threads,
           const std::vector<FormatSpeed>& formats) {
  fmt::print(out, "{}, weights in {}, {} threads; {} sequences of {} + {} tokens, {} rounds\n\n",
             label(options), engine.compute_name(), threads, options.batch, options.prompt_tokens,
             options.new_tokens, options.rounds);
  Table table({"format", "prompt tokens/s", "best", "new tokens/s", "best", "cache", "of 16 bits"});
  for (const FormatSpeed& format : formats) {
    const std::int64_t bytes = format.bytes.pages + format.bytes.exact;
    const auto prefill = [&](double rate) {
      return options.fill ? std::string("-") : with_commas(rate);
    };
    table.add({format.name, prefill(format.prefill.median()), prefill(format.prefill.largest()),
               with_commas(format.decode.median()), with_commas(format.decode.largest()),
               human_bytes(bytes),
               fmt::format("{:.0f} %", 100.0 * static_cast<double>(bytes) /
                                           static_cast<double>(format.bytes_16bit))});
  }
  table.print(out);
  for (const FormatSpeed& format : formats) {
    if (format.largest_batch == 0) continue;
    fmt::print(out, "{}: {} sequences of {} tokens fit\n", format.name, format.largest_batch,
               with_commas(std::int64_t{options.prompt_tokens}));
  }
}

nlohmann::ordered_json to_json(const BenchGenerateOptions& options, const Engine& engine,
                               int threads, const std::vector<FormatSpeed>& formats) {
  nlohmann::ordered_json entries = nlohmann::ordered_json::array();
  for (const FormatSpeed& format : formats) {
    entries.push_back({{"name", format.name},
                       {"kernel", format.kernel},
                       {"effective_bits", effective_bits(*format.spec)},
                       {"prefill_tokens_per_s", format.prefill.median()},  // 0: not measured
                       {"prefill_tokens_per_s_best", format.prefill.largest()},
                       {"decode_tokens_per_s", format.decode.median()},
                       {"decode_tokens_per_s_best", format.decode.largest()},
                       {"cache_bytes", format.bytes.pages + format.bytes.exact},
                       {"cache_bytes_16bit", format.bytes_16bit}});
    if (options.largest_batch) entries.back()["largest_batch"] = format.largest_batch;
  }
  return {{"model", label(options)},
          {"weights", engine.compute_name()},
          {"threads", threads},
          {"batch", options.batch},
          {"prompt_tokens", options.prompt_tokens},
          {"new_tokens", options.new_tokens},
          {"rounds", options.rounds},
          {"formats", std::move(entries)}};
}

Result<int> run_bench_generate(const BenchGenerateOptions& options) {
  KVQ_RETURN_IF_ERROR(options.json.check());
  if (options.largest_batch && options.machine.device == "cpu" && options.cache.memory == 0) {
    return fail("--largest-batch: expected --memory, or --device cuda, whose memory is the limit");
  }
  KVQ_ASSIGN_OR_RETURN(BenchModel model, open_model(options));
  Engine& engine = model.engine;
  const int context = engine.config().context;
  if (options.prompt_tokens + options.new_tokens > context) {
    return fail("{} + {} tokens exceed the model's context of {}", options.prompt_tokens,
                options.new_tokens, context);
  }
  std::vector<FormatSpeed> formats;
  KVQ_ASSIGN_OR_RETURN(auto named, cache_formats(options.cache, engine.config(), model.directory,
                                                 {"k16v16", "k8v8", "k4v4", "k4v2", "k2v2"}));
  for (CacheFormat& cache : named) {
    FormatSpeed format;
    format.name = std::move(cache.name);
    format.spec = std::move(cache.spec);
    format.kernel = kernel_names(engine, *format.spec, /*decode=*/true);
    formats.push_back(std::move(format));
  }
  KVQ_RETURN_IF_ERROR(measure(options, engine, formats));
  const int threads = engine.threads().size();
  print(options.json.tables(), options, engine, threads, formats);
  KVQ_RETURN_IF_ERROR(options.json.write(to_json(options, engine, threads, formats)));
  return 0;
}

}  // namespace

Command add_bench_generate(CLI::App& bench) {
  CLI::App* app =
      bench.add_subcommand("generate", "Prompt and decode tokens/s, formats taking turns");
  auto options = std::make_shared<BenchGenerateOptions>();
  options->model.add(*app);
  options->cache.add(*app, /*several=*/true);
  options->cache.add_plan(*app, /*several=*/true);
  options->cache.add_memory(*app, "Memory for the caches; a run that needs more fails [no limit]");
  app->add_option("--prompt-tokens", options->prompt_tokens, "Tokens of each prompt [1024]")
      ->type_name("N")
      ->check(CLI::Range(1, 1 << 24));
  app->add_option("--new-tokens", options->new_tokens, "Tokens made after each [128]")
      ->type_name("N")
      ->check(CLI::Range(2, 1 << 24));
  app->add_option("--batch", options->batch, "Sequences decoded together [1]")
      ->type_name("N")
      ->check(CLI::Range(1, 4096));
  app->add_option("--rounds", options->rounds, "Times that every format runs [5]")
      ->type_name("N")
      ->check(CLI::Range(1, 10000));
  app->add_option("--seed", options->seed, "Seed of the random prompt [0]")->type_name("N");
  app->add_option("--random-model", options->random_model,
                  "A model of random weights, made on the device, instead of MODEL")
      ->type_name("llama-8b")
      ->check(CLI::IsMember({"llama-8b"}));
  app->add_flag("--fill", options->fill,
                "Fill the caches with random keys and values instead of reading a prompt");
  app->add_flag("--largest-batch", options->largest_batch,
                "Also find how many sequences of a prompt's length fit in memory");
  options->machine.add_prefill(*app);
  options->machine.add_threads(*app);
  options->machine.add_isa(*app);
  options->machine.add_device(*app);
  options->json.add(*app);
  app->footer("Each figure is the median of the rounds, with the best beside it.");
  return {app, [options] { return run_bench_generate(*options); }};
}

}  // namespace kvq
