#include "apps/kvq/formats.h"

#include <algorithm>

#include "kvq/analysis/plan_model.h"

namespace kvq {
namespace {

// The plan's own window and sinks hold: others would be another plan.
Status check_exact_rows(const CacheOptions& options) {
  if (options.plans.empty() || !options.specs.empty()) return {};
  for (const auto& [option, name] :
       {std::pair(options.window_option, "--window"), std::pair(options.sinks_option, "--sinks")}) {
    if (option != nullptr && option->count() > 0) {
      return fail("{}: the plan says how many tokens stay in 16 bits; make one with other numbers",
                  name);
    }
  }
  return {};
}

Result<CacheSpec> uniform_spec(const LayerSpec& layer, const ModelConfig& config,
                               const CacheOptions& options) {
  CacheSpec spec = CacheSpec::uniform(layer, config.layers, config.kv_heads, config.head_dim);
  spec.sinks = options.sinks;
  spec.window = options.window;
  KVQ_RETURN_IF_ERROR(validate(spec));
  return spec;
}

}  // namespace

Result<std::vector<CacheFormat>> cache_formats(const CacheOptions& options,
                                               const ModelConfig& config,
                                               const std::filesystem::path& directory,
                                               const std::vector<std::string>& defaults) {
  KVQ_RETURN_IF_ERROR(check_exact_rows(options));
  std::vector<CacheFormat> formats;
  const bool plans_only = options.specs.empty() && !options.plans.empty();
  for (const LayerSpec& layer :
       plans_only ? std::vector<LayerSpec>{} : options.layer_specs(defaults)) {
    KVQ_ASSIGN_OR_RETURN(CacheSpec spec, uniform_spec(layer, config, options));
    formats.push_back({to_string(layer), std::make_shared<const CacheSpec>(std::move(spec))});
  }
  if (options.plans.empty()) return formats;
  KVQ_ASSIGN_OR_RETURN(const PlanModel model, plan_model(config, directory));
  for (const std::string& file : options.plans) {
    KVQ_ASSIGN_OR_RETURN(const Plan plan, read_plan(file));
    KVQ_RETURN_IF_ERROR(check_model(plan, model, file));
    // Tables compare formats under one window.
    const CacheSpec& first = formats.empty() ? CacheSpec::of(plan) : *formats.front().spec;
    if (plan.sinks != first.sinks || plan.window != first.window) {
      return fail("{}: sinks, window: expected {}, {} as the other formats have, found {}, {}",
                  file, first.sinks, first.window, plan.sinks, plan.window);
    }
    formats.push_back({file, std::make_shared<const CacheSpec>(CacheSpec::of(plan))});
  }
  return formats;
}

std::string kernel_names(const Engine& engine, const CacheSpec& spec, bool decode) {
  std::vector<std::string> names;
  for (const LayerSpec& layer : spec.layers) {
    std::string name = engine.kernel_name(PageFormat::create(layer, spec.head_dim).value(), decode);
    if (std::ranges::find(names, name) == names.end()) names.push_back(std::move(name));
  }
  return fmt::format("{}", fmt::join(names, ", "));
}

}  // namespace kvq
