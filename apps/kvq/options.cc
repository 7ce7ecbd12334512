#include "apps/kvq/options.h"

#include <algorithm>
#include <thread>

#include "apps/kvq/demo_model.h"
#include "kvq/base/file.h"
#include "kvq/codec/spec.h"
#include "kvq/model/checkpoint.h"

namespace kvq {
namespace {

// "" if the text is a format, else what is wrong, as CLI11's checks answer.
std::string check_spec(const std::string& text) {
  const auto spec = parse_layer_spec(text);
  return spec ? "" : spec.error().message;
}

std::string check_window(const std::string& text) {
  int window = -1;
  if (CLI::detail::lexical_cast(text, window) && window >= 0 && window % kPageTokens == 0)
    return "";
  return fmt::format("expected a multiple of {} tokens, found '{}'", kPageTokens, text);
}

}  // namespace

void ModelOptions::add(CLI::App& app) {
  app.add_option("MODEL", model, "Model directory or Hugging Face id [the embedded demo model]");
}

Result<std::filesystem::path> ModelOptions::find() const {
  return model.empty() ? find_demo_model() : find_model(model);
}

std::string ModelOptions::label() const { return model.empty() ? "demo-llama (embedded)" : model; }

void MachineOptions::add_threads(CLI::App& app) {
  app.add_option("--threads", threads, "Threads [all that the process may use]")
      ->check(CLI::Range(1, 1024))
      ->type_name("N");
}

void MachineOptions::add_isa(CLI::App& app) {
  app.add_option("--isa", isa, "Instruction set of the kernels [the machine's best]")
      ->type_name("portable|avx2|avx512")
      ->check(CLI::IsMember({"portable", "avx2", "avx512"}));
}

void MachineOptions::add_device(CLI::App& app) {
  app.add_option("--device", device, "Where the model runs [cpu]")
      ->type_name("cpu|cuda")
      ->check(CLI::IsMember({"cpu", "cuda"}));
}

void MachineOptions::add_prefill(CLI::App& app) {
  app.add_option("--prefill", prefill,
                 "What the prompt's own attention reads: the packed cache, or its rows before "
                 "packing (exact), as transformers' quantized caches do [packed]")
      ->type_name("packed|exact")
      ->check(CLI::IsMember({"packed", "exact"}));
}

int MachineOptions::thread_count() const {
  return threads > 0 ? threads : std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

Result<Isa> MachineOptions::chosen_isa() const {
  if (isa.empty()) return default_isa();
  KVQ_ASSIGN_OR_RETURN(const Isa chosen, parse_isa(isa));
  if (chosen > host_isa()) {
    return fail("--isa: this machine cannot run {}; its best is {}", isa, name(host_isa()));
  }
  return chosen;
}

Result<EngineOptions> MachineOptions::engine_options() const {
  EngineOptions options;
  options.device = device == "cuda" ? Device::kCuda : Device::kCpu;
  options.threads = threads;
  options.exact_prefill = prefill == "exact";
  KVQ_ASSIGN_OR_RETURN(options.isa, chosen_isa());
  return options;
}

void CacheOptions::add(CLI::App& app, bool several) {
  add_spec(app, several);
  add_exact_rows(app);
}

void CacheOptions::add_spec(CLI::App& app, bool several) {
  CLI::Option* option =
      app.add_option("--kv", specs,
                     fmt::format("Cache format{}, for example k4v2, k16v16 (unquantized) or "
                                 "k4:g32:channel:affine:minmax:none,v2:g64:token",
                                 several ? " (repeatable)" : ""));
  option->type_name("SPEC")->check(CLI::Validator(check_spec, ""))->allow_extra_args(false);
  if (!several) option->expected(1)->multi_option_policy(CLI::MultiOptionPolicy::Throw);
}

void CacheOptions::add_plan(CLI::App& app, bool several) {
  CLI::Option* option = app.add_option(
      "--plan", plans,
      fmt::format("A plan that kvq plan made{}, instead of one format for all layers",
                  several ? " (repeatable)" : ""));
  option->type_name("FILE")->allow_extra_args(false);
  if (several) return;
  option->expected(1)->multi_option_policy(CLI::MultiOptionPolicy::Throw);
  option->excludes(app.get_option("--kv"));
}

void CacheOptions::add_exact_rows(CLI::App& app) {
  window_option =
      app.add_option("--window", window, "Newest tokens kept in 16 bits, a multiple of 64 [64]")
          ->type_name("TOKENS")
          ->check(CLI::Validator(check_window, ""));
  sinks_option = app.add_option("--sinks", sinks, "First tokens kept in 16 bits [4]")
                     ->type_name("TOKENS")
                     ->check(CLI::Range(0, 4096));
}

void CacheOptions::add_memory(CLI::App& app, const std::string& text) {
  app.add_option("--memory", memory, text)
      ->type_name("SIZE")
      ->transform(CLI::AsSizeValue(/*kb_is_1000=*/true))
      ->check(CLI::Range(std::uint64_t{1}, std::uint64_t{1} << 60));
}

std::vector<LayerSpec> CacheOptions::layer_specs(const std::vector<std::string>& defaults) const {
  std::vector<LayerSpec> result;
  for (const std::string& text : specs.empty() ? defaults : specs) {
    result.push_back(parse_layer_spec(text).value());
  }
  return result;
}

std::shared_ptr<PagePool> CacheOptions::pool() const {
  return PagePool::create(static_cast<std::int64_t>(memory));
}

void add_heads(CLI::App& app, int& kv_heads, int& query_heads, int& head_dim) {
  app.add_option("--kv-heads", kv_heads, fmt::format("Heads of keys and values [{}]", kv_heads))
      ->type_name("N")
      ->check(CLI::Range(1, 1024));
  app.add_option("--query-heads", query_heads,
                 fmt::format("Heads of queries, a multiple of these [{}]", query_heads))
      ->type_name("N")
      ->check(CLI::Range(1, 4096));
  app.add_option("--head-dim", head_dim, fmt::format("Channels of a head [{}]", head_dim))
      ->type_name("N")
      ->check(CLI::Range(16, 256));
}

Result<LoadedModel> load_model(const ModelOptions& model, const MachineOptions& machine) {
  KVQ_ASSIGN_OR_RETURN(const EngineOptions options, machine.engine_options());
  KVQ_ASSIGN_OR_RETURN(const std::filesystem::path directory, model.find());
  KVQ_ASSIGN_OR_RETURN(Tokenizer tokenizer, Tokenizer::open(directory));
  KVQ_ASSIGN_OR_RETURN(Engine engine, Engine::load(directory, options));
  return LoadedModel{std::move(engine), std::move(tokenizer)};
}

Result<std::shared_ptr<const CacheSpec>> make_cache_spec(const Engine& engine,
                                                         const LayerSpec& layer,
                                                         const CacheOptions& options) {
  CacheSpec spec = engine.cache_spec(layer, options.sinks, options.window);
  KVQ_RETURN_IF_ERROR(validate(spec));
  return std::make_shared<const CacheSpec>(std::move(spec));
}

}  // namespace kvq
