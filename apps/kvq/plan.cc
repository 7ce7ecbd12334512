// kvq plan: which bits go where.
#include "kvq/plan/plan.h"

#include <algorithm>
#include <cmath>

#include "apps/kvq/command.h"
#include "apps/kvq/formats.h"
#include "apps/kvq/norms.h"
#include "apps/kvq/output.h"
#include "apps/kvq/plan_sensitivity.h"
#include "kvq/analysis/plan_model.h"
#include "kvq/plan/format_lists.h"
#include "kvq/plan/greedy.h"
#include "kvq/plan/optimal.h"

namespace kvq {
namespace {

// Of a table of norms that names no model: that of most models of 7 to 70 billion parameters.
constexpr int kAssumedKvHeads = 8;
constexpr int kAssumedHeadDim = 128;

struct PlanOptions {
  ModelOptions model;
  MachineOptions machine;
  CacheOptions cache;  // --kv: what the plan does not choose
  JsonOption json;
  NormOption norm;
  SensitivityChoice sensitivity;
  std::string method;       // empty on the command line: as resolve_method() says
  double budget = 0;        // stored bits (sensitivity) or code bits (norm); 0 = not given
  double group_budget = 0;  // numbers of a group; 0 = not given
  std::int64_t tokens = 0;
  std::int64_t batch = 1;
  std::string widths = "1,2,3,4,5,6,8";
  std::string groups = "16,32,64,128,256";
  bool lists_widths = false;  // --bits was given
  bool lists_groups = false;  // --groups was given
  std::string norms_file;
  std::string output;

  LayerSpec base() const { return cache.layer_specs({kDefaultSpec}).front(); }
  bool by_norms() const { return method == "norm"; }
  PlanBudget size() const {
    return {budget, static_cast<std::int64_t>(cache.memory), tokens, batch};
  }
};

void warn(const std::string& text) { fmt::print(stderr, "warning: {}\n", text); }

// A table that says less than the model does, or of another model.
Status complete(NormTable& norms, const PlanOptions& options, const PlanModel& model) {
  const std::string& file = options.norms_file;
  if (norms.model.layers != model.layers) {
    return fail("{}: w_k: expected {} norms, one for each layer of the model, found {}", file,
                model.layers, norms.model.layers);
  }
  if (!norms.model.identity.empty() && norms.model.identity != model.identity) {
    return fail("{}: identity: expected {}, the model's, found {}", file, model.identity,
                norms.model.identity);
  }
  norms.model = model;
  return {};
}

Result<NormTable> read_norm_table(const PlanOptions& options) {
  KVQ_ASSIGN_OR_RETURN(NormTable norms, read_norms(options.norms_file));
  bool qk_norm = false;
  if (!options.model.model.empty()) {
    KVQ_ASSIGN_OR_RETURN(const std::filesystem::path directory, options.model.find());
    KVQ_ASSIGN_OR_RETURN(const ModelConfig config, read_config(directory));
    KVQ_ASSIGN_OR_RETURN(const PlanModel model, plan_model(config, directory));
    KVQ_RETURN_IF_ERROR(complete(norms, options, model));
    qk_norm = config.qk_norm;
  } else if (norms.model.kv_heads == 0) {
    norms.model.kv_heads = kAssumedKvHeads;
    norms.model.head_dim = kAssumedHeadDim;
    warn(
        fmt::format("{} names no model: the plan is for one of {} kv heads of {} channels; name a "
                    "MODEL for another shape",
                    options.norms_file, kAssumedKvHeads, kAssumedHeadDim));
  }
  warn_about_norms(norms, qk_norm);
  return norms;
}

Result<NormTable> find_norms(const PlanOptions& options) {
  if (!options.norms_file.empty()) return read_norm_table(options);
  KVQ_ASSIGN_OR_RETURN(const std::filesystem::path directory, options.model.find());
  KVQ_ASSIGN_OR_RETURN(const ModelConfig config, read_config(directory));
  KVQ_ASSIGN_OR_RETURN(NormTable norms,
                       measure_model_norms(options.model, options.machine, options.norm));
  warn_about_norms(norms, config.qk_norm);
  return norms;
}

// The least total cost within the memory.
Result<std::vector<LayerSpec>> widths_within_memory(const PlanOptions& options,
                                                    const NormTable& norms,
                                                    const std::vector<Bits>& widths) {
  KVQ_ASSIGN_OR_RETURN(const CostTable costs, width_costs(norms, options.base(), widths));
  const auto budget =
      page_budget(options.size(), norms.model, options.cache.sinks, options.cache.window);
  if (!budget) return fail("--{}", budget.error().message);
  const auto choice = choose_optimal(costs, *budget);
  if (!choice) return fail("--memory: {}", choice.error().message);
  const bool all_widest = std::ranges::all_of(
      *choice, [&](int index) { return index + 1 == static_cast<int>(widths.size()); });
  if (all_widest) {
    const std::int64_t left = *budget - chosen_bytes(costs, *choice);
    warn(fmt::format("the widest codes fit with {} for each page of 64 tokens left over",
                     human_bytes(left)));
  }
  return chosen_layers(costs, *choice);
}

// The paper's widths.
Result<std::vector<LayerSpec>> widths_by_average(const PlanOptions& options, const NormTable& norms,
                                                 const std::vector<Bits>& widths) {
  KVQ_ASSIGN_OR_RETURN(const CostTable costs, width_costs(norms, options.base(), widths));
  const auto plan = choose_widths(costs, options.budget);
  if (!plan) return fail("--budget: {}", plan.error().message);
  if (std::abs(plan->average - options.budget) > 1e-6) {
    warn(fmt::format("the codes take {:.4f} bits on average, the budget is {:.4f}: no step fits",
                     plan->average, options.budget));
  }
  return chosen_layers(costs, plan->choice);
}

Status choose_group_sizes(const PlanOptions& options, const NormTable& norms,
                          std::vector<LayerSpec>& layers) {
  KVQ_ASSIGN_OR_RETURN(const std::vector<int> groups, parse_groups(options.groups));
  KVQ_ASSIGN_OR_RETURN(const CostTable costs, group_costs(norms, layers, groups));
  const auto plan = choose_groups(costs, options.group_budget);
  if (!plan) return fail("--group-budget: {}", plan.error().message);
  if (std::abs(plan->average - options.group_budget) > 1e-3) {
    warn(fmt::format(
        "groups have {:.3f} numbers on average, the group budget is {:.3f}: no step fits",
        plan->average, options.group_budget));
  }
  layers = chosen_layers(costs, plan->choice);
  return {};
}

Result<std::vector<LayerSpec>> plan_by_norms(const PlanOptions& options, const NormTable& norms) {
  std::vector<LayerSpec> layers(norms.keys.size(), options.base());
  if (options.budget > 0 || options.cache.memory > 0) {
    KVQ_ASSIGN_OR_RETURN(const std::vector<Bits> widths, parse_widths(options.widths));
    KVQ_ASSIGN_OR_RETURN(layers, options.budget > 0 ? widths_by_average(options, norms, widths)
                                                    : widths_within_memory(options, norms, widths));
  }
  if (options.group_budget > 0) KVQ_RETURN_IF_ERROR(choose_group_sizes(options, norms, layers));
  return layers;
}

double average_code_bits(const std::vector<LayerSpec>& layers) {
  double sum = 0;
  for (const LayerSpec& layer : layers)
    sum += code_bits(layer.key.bits) + code_bits(layer.value.bits);
  return sum / (2 * static_cast<double>(layers.size()));
}

// `norms`: null where the plan was made without.
void print(std::FILE* out, const Plan& plan, const NormTable* norms) {
  std::vector<std::string> header = {"layer", "keys", "values", "bits a number"};
  if (norms != nullptr) header.insert(header.begin() + 1, {"W_K", "W_V"});
  Table table(std::move(header));
  for (std::size_t layer = 0; layer < plan.layers.size(); ++layer) {
    const LayerSpec& spec = plan.layers[layer];
    std::vector<std::string> row = {
        std::to_string(layer), to_string(spec.key, true), to_string(spec.value, false),
        fmt::format("{:.3f}", effective_bits({spec}, plan.model.head_dim))};
    if (norms != nullptr) {
      row.insert(row.begin() + 1, {fmt::format("{:.3f}", norms->keys[layer]),
                                   fmt::format("{:.3f}", norms->values[layer])});
    }
    table.add(std::move(row));
  }
  table.print(out);
  fmt::print(
      out,
      "\n{:.3f} code bits a number on average; {:.3f} stored bits, scales and padding included\n",
      average_code_bits(plan.layers), plan.effective_bits);
}

// Fills in the plan's model and layers, and tells what they were chosen by.
Status choose_by_norms(const PlanOptions& options, Plan& plan) {
  KVQ_ASSIGN_OR_RETURN(const NormTable norms, find_norms(options));
  plan.model = norms.model;
  KVQ_ASSIGN_OR_RETURN(plan.layers, plan_by_norms(options, norms));
  plan.effective_bits = effective_bits(plan.layers, plan.model.head_dim);
  print(options.json.tables(), plan, &norms);
  return {};
}

Status choose_by_sensitivity(const PlanOptions& options, Plan& plan) {
  CandidateOptions candidates;
  if (options.lists_widths) {
    KVQ_ASSIGN_OR_RETURN(candidates.bits, parse_widths(options.widths));
  }
  if (options.lists_groups) {
    KVQ_ASSIGN_OR_RETURN(candidates.groups, parse_groups(options.groups));
  }
  KVQ_ASSIGN_OR_RETURN(SensitivityPlan found,
                       run_sensitivity_plan(options.model, options.machine, options.cache,
                                            options.sensitivity, candidates, options.size()));
  plan.model = std::move(found.model);
  plan.layers = std::move(found.layers);
  plan.effective_bits = effective_bits(plan.layers, plan.model.head_dim);
  print(options.json.tables(), plan, nullptr);
  fmt::print(options.json.tables(), "KL to 16 bits {:.5f} on {}\n", found.divergence, found.text);
  return {};
}

Result<int> run_plan(const PlanOptions& options) {
  KVQ_RETURN_IF_ERROR(options.json.check());
  KVQ_RETURN_IF_ERROR(JsonOption{options.output}.check());
  Plan plan;
  plan.method = options.method;
  plan.budget = options.budget;
  plan.sinks = options.cache.sinks;
  plan.window = options.cache.window;
  KVQ_RETURN_IF_ERROR(options.by_norms() ? choose_by_norms(options, plan)
                                         : choose_by_sensitivity(options, plan));
  KVQ_RETURN_IF_ERROR(validate(plan));
  if (!options.output.empty()) KVQ_RETURN_IF_ERROR(write_plan(plan, options.output));
  KVQ_RETURN_IF_ERROR(options.json.write(nlohmann::ordered_json::parse(to_json(plan))));
  return 0;
}

// Whatever names norms or the published planner's group budget asks for its method.
void resolve_method(PlanOptions& options, const CLI::App& app) {
  for (const char* option : {"--norm", "--norms", "--group-budget", "--kv"}) {
    if (app.count(option) == 0) continue;
    if (options.method == "sensitivity") {
      throw CLI::ValidationError(option, "goes with --method norm");
    }
    options.method = "norm";
  }
  for (const char* option :
       {"--sensitivity", "--calibration", "--windows", "--copies", "--rounds", "--seed"}) {
    if (app.count(option) > 0 && options.by_norms()) {
      throw CLI::ValidationError(option, "goes with --method sensitivity");
    }
  }
  if (options.method.empty()) options.method = "sensitivity";
  options.lists_widths = app.count("--bits") > 0;
  options.lists_groups = app.count("--groups") > 0;
}

// What the options mean together.
void check(const PlanOptions& options, const CLI::App& app) {
  const bool memory = options.cache.memory > 0;
  if (options.budget <= 0 && options.group_budget <= 0 && !memory) {
    throw CLI::ValidationError("plan", "expected --budget, --memory or --group-budget");
  }
  if (memory && options.budget > 0) {
    throw CLI::ValidationError("plan", "expected one of --budget and --memory");
  }
  if (memory && options.group_budget > 0) {
    throw CLI::ValidationError("plan",
                               "--group-budget goes with --budget or alone, not with --memory");
  }
  if (memory != (options.tokens > 0)) {
    throw CLI::ValidationError("plan", "--memory and --tokens need each other");
  }
  if (options.lists_groups && options.by_norms() && options.group_budget <= 0) {
    throw CLI::ValidationError("--groups", "needs --group-budget");
  }
  if (app.count("--bits") > 0 && options.budget <= 0 && !memory) {
    throw CLI::ValidationError("--bits", "needs --budget or --memory");
  }
}

// CLI11's check of a list.
template <typename Parse>
CLI::Validator list_check(Parse parse) {
  return CLI::Validator(
      [parse](std::string& text) {
        const auto list = parse(text);
        return list ? std::string() : list.error().message;
      },
      "");
}

void add_budgets(CLI::App& app, PlanOptions& options) {
  app.add_option("--budget", options.budget,
                 "Bits of a number: stored ones, scales and padding included; with --method norm "
                 "those of codes alone, as the KVQ paper counts")
      ->type_name("BITS")
      ->check(CLI::Range(0.01, 16.0));
  app.add_option("--group-budget", options.group_budget, "Average numbers that share a scale")
      ->type_name("N")
      ->check(CLI::Range(1.0, 4096.0));
  options.cache.add_memory(app, "Memory that the whole cache has to fit, in place of --budget");
  app.add_option("--tokens", options.tokens, "Tokens of each sequence in that memory")
      ->type_name("N")
      ->check(CLI::Range(std::int64_t{1}, std::int64_t{1} << 40));
  app.add_option("--batch", options.batch, "Sequences that share it [1]")
      ->type_name("N")
      ->check(CLI::Range(1, 1 << 20));
  app.add_option("--bits", options.widths,
                 fmt::format("Widths to choose from [all; {} for norm]", options.widths))
      ->type_name("LIST")
      ->check(list_check(parse_widths));
  app.add_option(
         "--groups", options.groups,
         fmt::format("Group sizes to choose from [64,128,256; {} for norm]", options.groups))
      ->type_name("LIST")
      ->check(list_check(parse_groups));
}

}  // namespace

Command add_plan(CLI::App& root) {
  CLI::App* app = root.add_subcommand("plan", "Decide which bits go where");
  auto options = std::make_shared<PlanOptions>();
  options->model.add(*app);
  add_budgets(*app, *options);
  app->add_option(
         "--method", options->method,
         "What decides: each format's measured effect on the model (sensitivity), or norms "
         "of the weights, as published (norm) [sensitivity]")
      ->type_name("sensitivity|norm")
      ->check(CLI::IsMember({"sensitivity", "norm"}));
  options->sensitivity.add(*app);
  options->norm.add(*app);
  app->add_option("--norms", options->norms_file,
                  "A table of norms that kvq norms wrote; needs no model")
      ->type_name("FILE")
      ->excludes(app->get_option("--norm"));
  options->cache.add(*app, /*several=*/false);
  app->add_option("-o,--output", options->output, "Write the plan")->type_name("FILE");
  options->machine.add_threads(*app);
  options->json.add(*app);
  app->parse_complete_callback([options, app] {
    resolve_method(*options, *app);
    check(*options, *app);
  });
  app->footer(fmt::format(
      "A sensitivity plan chooses everything about each layer's keys and values: width,\n"
      "axis, group, parameters and rotation. It tries them on text (--calibration)\n"
      "and takes the ones of least effect that fit --budget or --memory.\n"
      "With --method norm, which --norm, --norms, --group-budget and --kv imply, the\n"
      "plan chooses widths (--budget, --memory) and group sizes (--group-budget); all\n"
      "else is as --kv says (default {}). With --budget and --group-budget it is the\n"
      "KVQ paper's; --memory counts stored bytes and takes the plan of least error\n"
      "within them.",
      kDefaultSpec));
  return {app, [options] { return run_plan(*options); }};
}

}  // namespace kvq
