// kvq norms: how large the projections are that make keys and values.
#include "apps/kvq/norms.h"

#include <algorithm>

#include "apps/kvq/command.h"
#include "apps/kvq/output.h"
#include "kvq/base/file.h"

namespace kvq {
namespace {

struct NormsCommand {
  ModelOptions model;
  MachineOptions machine;
  NormOption norm;
  JsonOption json;
  std::string output;
};

std::string range(const std::vector<double>& values) {
  const auto [low, high] = std::minmax_element(values.begin(), values.end());
  return fmt::format("{:.3f} .. {:.3f}", *low, *high);
}

void print(std::FILE* out, const NormTable& norms) {
  fmt::print(out, "{}, {} norms of the projections, whole and of each of {} kv heads\n\n",
             norms.label, norms.norm, norms.model.kv_heads);
  Table table({"layer", "W_K", "W_V", "W_K / W_V", "W_K by head", "W_V by head"});
  for (std::size_t layer = 0; layer < norms.keys.size(); ++layer) {
    table.add({std::to_string(layer), fmt::format("{:.3f}", norms.keys[layer]),
               fmt::format("{:.3f}", norms.values[layer]),
               fmt::format("{:.3f}", norms.keys[layer] / norms.values[layer]),
               range(norms.key_heads[layer]), range(norms.value_heads[layer])});
  }
  table.print(out);
}

Result<int> run_norms(const NormsCommand& command) {
  KVQ_RETURN_IF_ERROR(command.json.check());
  KVQ_RETURN_IF_ERROR(JsonOption{command.output}.check());
  KVQ_ASSIGN_OR_RETURN(const std::filesystem::path directory, command.model.find());
  KVQ_ASSIGN_OR_RETURN(const ModelConfig config, read_config(directory));
  KVQ_ASSIGN_OR_RETURN(const NormTable norms,
                       measure_model_norms(command.model, command.machine, command.norm));
  print(command.json.tables(), norms);
  warn_about_norms(norms, config.qk_norm);
  const std::string text = to_json(norms);
  if (!command.output.empty()) KVQ_RETURN_IF_ERROR(write_file(command.output, text));
  KVQ_RETURN_IF_ERROR(command.json.write(nlohmann::ordered_json::parse(text)));
  return 0;
}

}  // namespace

void NormOption::add(CLI::App& app) {
  app.add_option("--norm", name,
                 "Frobenius norm, or spectral: the largest singular value [frobenius]")
      ->type_name("frobenius|spectral")
      ->check(CLI::IsMember({"frobenius", "spectral"}));
}

Result<NormTable> measure_model_norms(const ModelOptions& model, const MachineOptions& machine,
                                      const NormOption& norm) {
  KVQ_ASSIGN_OR_RETURN(const std::filesystem::path directory, model.find());
  KVQ_ASSIGN_OR_RETURN(const ModelConfig config, read_config(directory));
  KVQ_ASSIGN_OR_RETURN(const Checkpoint checkpoint, Checkpoint::open(directory));
  ThreadPool threads(machine.thread_count());
  KVQ_ASSIGN_OR_RETURN(NormTable norms, measure_norms(config, checkpoint, norm.norm(), threads));
  norms.label = model.label();
  return norms;
}

void warn_about_norms(const NormTable& table, bool qk_norm) {
  const auto below = std::ranges::count_if(table.keys, [&](const double& key) {
    return key < table.values[static_cast<std::size_t>(&key - table.keys.data())];
  });
  if (below > 0) {
    fmt::print(
        stderr,
        "warning: W_K is below W_V in {} of {} layers: a plan by these norms gives values the "
        "wider codes there\n",
        below, table.keys.size());
  }
  if (qk_norm) {
    fmt::print(
        stderr,
        "warning: this model normalizes its keys after the projection (q/k-norm): the norm of "
        "W_K says nothing about the keys that are cached\n");
  }
}

Command add_norms(CLI::App& root) {
  CLI::App* app =
      root.add_subcommand("norms", "Norms of the projections that make keys and values");
  auto command = std::make_shared<NormsCommand>();
  command->model.add(*app);
  command->norm.add(*app);
  app->add_option("-o,--output", command->output, "Write the table that kvq plan --norms takes")
      ->type_name("FILE");
  command->machine.add_threads(*app);
  command->json.add(*app);
  return {app, [command] { return run_norms(*command); }};
}

}  // namespace kvq
