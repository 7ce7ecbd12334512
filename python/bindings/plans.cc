// Plans, norms and the planners that need no model in memory.
#include <nanobind/stl/filesystem.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <string>
#include <vector>

#include "kvq/analysis/norms.h"
#include "kvq/analysis/page_budget.h"
#include "kvq/analysis/plan_model.h"
#include "kvq/base/file.h"
#include "kvq/cache/cache_spec.h"
#include "kvq/plan/greedy.h"
#include "kvq/plan/norm_table.h"
#include "kvq/plan/optimal.h"
#include "kvq/plan/plan.h"
#include "python/bindings/errors.h"
#include "python/bindings/module.h"
#include "python/bindings/workers.h"

namespace kvq::python {
namespace {

namespace nb = nanobind;
using namespace nb::literals;

PlanModel model_of(const std::string& model) {
  const auto directory = take(find_model(model));
  return take(plan_model(take(read_config(directory)), directory));
}

NormTable measure(const std::string& model, const std::string& norm) {
  if (norm != "frobenius" && norm != "spectral") {
    take(fail("norm: expected frobenius or spectral, found '{}'", norm));
  }
  const nb::gil_scoped_release release;
  const auto directory = take(find_model(model));
  const ModelConfig config = take(read_config(directory));
  const Checkpoint checkpoint = take(Checkpoint::open(directory));
  Workers& workers = Workers::instance();
  const auto held = workers.lock();
  NormTable table = take(measure_norms(config, checkpoint,
                                       norm == "spectral" ? Norm::kSpectral : Norm::kFrobenius,
                                       workers.threads()));
  table.label = model;
  return table;
}

NormTable norms_of_lists(std::vector<double> keys, std::vector<double> values, std::string norm,
                         int kv_heads, int head_dim, std::string label) {
  if (keys.size() != values.size() || keys.empty()) {
    take(fail("w_v: expected {} norms as w_k has, found {}", keys.size(), values.size()));
  }
  for (const auto* list : {&keys, &values}) {
    for (const double number : *list) {
      if (!(number > 0)) take(fail("norms: expected numbers above 0, found {}", number));
    }
  }
  NormTable table;
  table.label = std::move(label);
  table.norm = std::move(norm);
  table.model = {.identity = "",
                 .layers = static_cast<int>(keys.size()),
                 .kv_heads = kv_heads,
                 .head_dim = head_dim};
  table.keys = std::move(keys);
  table.values = std::move(values);
  return table;
}

Bits bits_of(const std::string& width) {
  for (const Bits bits : packed_bits()) {
    if (name(bits) == width) return bits;
  }
  std::string allowed;
  for (const Bits bits : packed_bits())
    allowed += (allowed.empty() ? "" : ", ") + std::string(name(bits));
  take(fail("bits: expected widths of {}, found {}", allowed, width));
  return Bits::k16;
}

Plan finish(Plan plan) {
  plan.effective_bits = effective_bits(plan.layers, plan.model.head_dim);
  take(validate(plan));
  return plan;
}

// The published planner: widths within `budget` code bits, group sizes of the average
// `group_budget`; 0 = not asked for. Or the widths of least error whose caches fit into `memory`.
Plan plan_by_norms(const NormTable& norms, double budget, const PlanBudget& memory,
                   const std::vector<std::string>& widths, double group_budget,
                   std::vector<int> groups, const std::string& spec, int sinks, int window) {
  const LayerSpec base = take(parse_layer_spec(spec));
  std::vector<LayerSpec> layers(norms.keys.size(), base);
  if (budget > 0 || memory.memory > 0) {
    std::vector<Bits> candidates;
    for (const Bits bits : packed_bits()) {
      const bool wanted = std::ranges::any_of(
          widths, [&](const std::string& width) { return bits_of(width) == bits; });
      if (wanted) candidates.push_back(bits);
    }
    const CostTable costs = take(width_costs(norms, base, candidates));
    layers = chosen_layers(
        costs, budget > 0 ? take(choose_widths(costs, budget)).choice
                          : take(choose_optimal(
                                costs, take(page_budget(memory, norms.model, sinks, window)))));
  }
  if (group_budget > 0) {
    std::ranges::sort(groups);
    const CostTable costs = take(group_costs(norms, layers, groups));
    layers = chosen_layers(costs, take(choose_groups(costs, group_budget)).choice);
  }
  Plan plan;
  plan.model = norms.model;
  plan.method = "norm";
  plan.budget = budget;
  plan.sinks = sinks;
  plan.window = window;
  plan.layers = std::move(layers);
  return finish(std::move(plan));
}

Plan plan_of_specs(const std::vector<std::string>& specs, int kv_heads, int head_dim, int sinks,
                   int window, const std::string& method) {
  Plan plan;
  plan.model = {.identity = "",
                .layers = static_cast<int>(specs.size()),
                .kv_heads = kv_heads,
                .head_dim = head_dim};
  plan.method = method;
  plan.sinks = sinks;
  plan.window = window;
  for (const std::string& spec : specs) plan.layers.push_back(take(parse_layer_spec(spec)));
  take(validate(CacheSpec::of(plan)));
  return finish(std::move(plan));
}

std::vector<std::string> specs_of(const Plan& plan) {
  std::vector<std::string> specs;
  for (const LayerSpec& layer : plan.layers) specs.push_back(to_string(layer));
  return specs;
}

nb::dict model_dict(const PlanModel& model) {
  nb::dict result;
  result["identity"] = model.identity;
  result["layers"] = model.layers;
  result["kv_heads"] = model.kv_heads;
  result["head_dim"] = model.head_dim;
  return result;
}

void bind_plan(nb::module_& module) {
  nb::class_<Plan>(module, "Plan", "Which format each layer's keys and values take.")
      .def_static("of_specs", &plan_of_specs, "specs"_a, "kv_heads"_a, "head_dim"_a, "sinks"_a,
                  "window"_a, "method"_a)
      .def_static(
          "read", [](const std::filesystem::path& path) { return take(read_plan(path)); }, "path"_a)
      .def_static(
          "parse", [](const std::string& text) { return take(parse_plan(text, "plan")); }, "text"_a)
      .def(
          "write",
          [](const Plan& plan, const std::filesystem::path& path) { take(write_plan(plan, path)); },
          "path"_a)
      .def("to_json", [](const Plan& plan) { return to_json(plan); })
      .def(
          "check",
          [](const Plan& plan, const std::string& model, const std::filesystem::path& path) {
            take(check_model(plan, model_of(model), path));
          },
          "model"_a, "path"_a)
      .def_prop_ro("specs", &specs_of)
      .def_prop_ro("model", [](const Plan& plan) { return model_dict(plan.model); })
      .def_ro("method", &Plan::method)
      .def_ro("budget", &Plan::budget)
      .def_ro("sinks", &Plan::sinks)
      .def_ro("window", &Plan::window)
      .def_ro("effective_bits", &Plan::effective_bits)
      .def(
          "cache_bytes",
          [](const Plan& plan, std::int64_t tokens) {
            return cache_bytes(CacheSpec::of(plan), tokens);
          },
          "tokens"_a)
      .def(
          "cache_bytes_16bit",
          [](const Plan& plan, std::int64_t tokens) {
            return cache_bytes_16bit(CacheSpec::of(plan), tokens);
          },
          "tokens"_a);
}

void bind_norms(nb::module_& module) {
  nb::class_<NormTable>(module, "Norms", "Norms of every layer's key and value projection.")
      .def_static("measure", &measure, "model"_a, "norm"_a)
      .def_static("of_lists", &norms_of_lists, "w_k"_a, "w_v"_a, "norm"_a, "kv_heads"_a,
                  "head_dim"_a, "label"_a)
      .def_static(
          "read", [](const std::filesystem::path& path) { return take(read_norms(path)); },
          "path"_a)
      .def("to_json", [](const NormTable& table) { return to_json(table); })
      .def_ro("label", &NormTable::label)
      .def_ro("norm", &NormTable::norm)
      .def_ro("w_k", &NormTable::keys)
      .def_ro("w_v", &NormTable::values)
      .def_prop_ro("model", [](const NormTable& table) { return model_dict(table.model); })
      .def(
          "with_shape",
          [](const NormTable& table, int kv_heads, int head_dim) {
            NormTable shaped = table;
            shaped.model.kv_heads = kv_heads;
            shaped.model.head_dim = head_dim;
            return shaped;
          },
          "kv_heads"_a, "head_dim"_a);
}

}  // namespace

void bind_plans(nb::module_& module) {
  bind_plan(module);
  bind_norms(module);
  module.def(
      "model_shape", [](const std::string& model) { return model_dict(model_of(model)); },
      "model"_a, "Identity, layers, kv_heads and head_dim of a checkpoint.");
  module.def(
      "plan_by_norms",
      [](const NormTable& norms, double budget, std::int64_t memory, std::int64_t tokens,
         std::int64_t batch, const std::vector<std::string>& widths, double group_budget,
         std::vector<int> groups, const std::string& spec, int sinks, int window) {
        return plan_by_norms(norms, budget, {0, memory, tokens, batch}, widths, group_budget,
                             std::move(groups), spec, sinks, window);
      },
      "norms"_a, "budget"_a, "memory"_a, "tokens"_a, "batch"_a, "widths"_a, "group_budget"_a,
      "groups"_a, "spec"_a, "sinks"_a, "window"_a);
}

}  // namespace kvq::python
