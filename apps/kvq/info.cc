// kvq info: what a model is, and what its cache costs in each format.
#include <algorithm>
#include <limits>

#include "apps/kvq/command.h"
#include "apps/kvq/formats.h"
#include "apps/kvq/options.h"
#include "apps/kvq/output.h"
#include "kvq/model/checkpoint.h"
#include "kvq/model/config.h"

namespace kvq {
namespace {

const std::vector<std::string> kCommonSpecs = {"k16v16", "k8v8", "k8v4", "k4v4",
                                               "k4v2",   "k3v3", "k3v2", "k2v2"};

struct InfoOptions {
  ModelOptions model;
  CacheOptions cache;
  JsonOption json;
  std::int64_t batch = 1;
};

// Bytes that one more token costs in the long run.
std::int64_t bytes_per_token(const CacheSpec& spec) {
  const std::int64_t start = spec.sinks + spec.window + std::int64_t{2} * kPageTokens;
  return (cache_bytes(spec, start + kPageTokens) - cache_bytes(spec, start)) / kPageTokens;
}

// The most tokens that `batch` sequences can each have in `bytes` of cache.
std::int64_t longest_context(const CacheSpec& spec, std::int64_t batch, std::int64_t bytes) {
  std::int64_t fits = 0;
  std::int64_t too_long = bytes / (batch * bytes_per_token(spec)) + 1;
  while (batch * cache_bytes(spec, too_long) <= bytes) too_long *= 2;
  while (too_long - fits > 1) {
    const std::int64_t middle = fits + (too_long - fits) / 2;
    (batch * cache_bytes(spec, middle) <= bytes ? fits : too_long) = middle;
  }
  return fits;
}

struct Weights {
  std::int64_t parameters = 0;
  std::int64_t bytes = 0;
};

Result<Weights> count_weights(const std::filesystem::path& directory) {
  KVQ_ASSIGN_OR_RETURN(const Checkpoint checkpoint, Checkpoint::open(directory));
  Weights weights;
  for (const auto& [name, tensor] : checkpoint.tensors()) {
    weights.parameters += tensor.elements();
    weights.bytes += tensor.elements() * bytes_of(tensor.type);
  }
  return weights;
}

Result<int> run_info(const InfoOptions& options) {
  KVQ_RETURN_IF_ERROR(options.json.check());
  KVQ_ASSIGN_OR_RETURN(const std::filesystem::path directory, options.model.find());
  KVQ_ASSIGN_OR_RETURN(const ModelConfig config, read_config(directory));
  KVQ_ASSIGN_OR_RETURN(const Weights weights, count_weights(directory));
  KVQ_ASSIGN_OR_RETURN(const std::vector<CacheFormat> formats,
                       cache_formats(options.cache, config, directory, kCommonSpecs));
  const auto memory = static_cast<std::int64_t>(options.cache.memory);

  Table table({"format", "bits a number", "bytes a token",
               fmt::format("at {} tokens", with_commas(std::int64_t{config.context})),
               fmt::format("tokens in {}", human_bytes(memory))});
  nlohmann::ordered_json bytes;
  nlohmann::ordered_json longest;
  for (const CacheFormat& named : formats) {
    const CacheSpec& spec = *named.spec;
    const std::string& format = named.name;
    const std::int64_t tokens = longest_context(spec, options.batch, memory);
    table.add({format, fmt::format("{:.3f}", effective_bits(spec)),
               with_commas(bytes_per_token(spec)), human_bytes(cache_bytes(spec, config.context)),
               with_commas(tokens)});
    bytes[format] = bytes_per_token(spec);
    longest[format] = tokens;
  }
  std::FILE* out = options.json.tables();
  print_fields(
      out, {{"model", options.model.label()},
            {"architecture", config.model_type},
            {"parameters",
             fmt::format("{} ({})", human_count(weights.parameters), human_bytes(weights.bytes))},
            {"layers", std::to_string(config.layers)},
            {"query heads", std::to_string(config.query_heads)},
            {"kv heads", std::to_string(config.kv_heads)},
            {"head dim", std::to_string(config.head_dim)},
            {"context", fmt::format("{} tokens", with_commas(std::int64_t{config.context}))},
            {"vocabulary", with_commas(std::int64_t{config.vocabulary})}});
  const CacheSpec& first = *formats.front().spec;
  fmt::print(out, "\nKV cache, batch {}; the first {} and the newest {} tokens stay in 16 bits\n",
             options.batch, first.sinks, first.window);
  table.print(out);
  KVQ_RETURN_IF_ERROR(options.json.write({{"model", options.model.label()},
                                          {"architecture", config.model_type},
                                          {"parameters", weights.parameters},
                                          {"layers", config.layers},
                                          {"kv_heads", config.kv_heads},
                                          {"head_dim", config.head_dim},
                                          {"query_heads", config.query_heads},
                                          {"context", config.context},
                                          {"vocabulary", config.vocabulary},
                                          {"sinks", first.sinks},
                                          {"window", first.window},
                                          {"batch", options.batch},
                                          {"memory", memory},
                                          {"bytes_per_token", bytes},
                                          {"longest_context", longest}}));
  return 0;
}

}  // namespace

Command add_info(CLI::App& root) {
  CLI::App* app = root.add_subcommand("info", "Describe a model and what its cache costs");
  auto options = std::make_shared<InfoOptions>();
  options->cache.memory = std::uint64_t{2} << 30;
  options->model.add(*app);
  options->cache.add(*app, /*several=*/true);
  options->cache.add_plan(*app, /*several=*/true);
  options->cache.add_memory(*app,
                            "Memory for the cache that the longest context has to fit [2GiB]");
  app->add_option("--batch", options->batch, "Sequences that share the memory [1]")
      ->type_name("N")
      ->check(CLI::Range(1, 1 << 20));
  options->json.add(*app);
  return {app, [options] { return run_info(*options); }};
}

}  // namespace kvq
