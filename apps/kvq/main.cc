// kvq: run a language model on a packed low-bit key/value cache.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <exception>
#include <new>
#include <string>
#include <vector>

#include "apps/kvq/command.h"
#include "apps/kvq/help_format.h"

namespace {

constexpr int kFailed = 1;
constexpr int kWrongCommandLine = 2;

// As typed behind "kvq": "bench append".
std::string full_name(const CLI::App& command) {
  const CLI::App* const parent = command.get_parent();
  const bool nested = parent != nullptr && parent->get_parent() != nullptr;
  return nested ? full_name(*parent) + " " + command.get_name() : command.get_name();
}

int run_command(const std::vector<kvq::Command>& commands) {
  for (const kvq::Command& command : commands) {
    if (!command.app->parsed()) continue;
    const kvq::Result<int> status = command.run();
    if (status) return *status;
    fmt::print(stderr, "kvq: {}\n", status.error().message);
    return kFailed;
  }
  std::vector<std::string> names;
  names.reserve(commands.size());
  for (const kvq::Command& command : commands) names.push_back(full_name(*command.app));
  fmt::print(stderr, "kvq: expected a command: {}\n", fmt::join(names, ", "));
  return kWrongCommandLine;
}

int run(int argument_count, char** arguments) {
  CLI::App root("Run a language model on a packed low-bit key/value cache.", "kvq");
  root.formatter(std::make_shared<kvq::HelpFormat>());
  root.require_subcommand(0, 1);
  root.set_version_flag("--version", "kvq " KVQ_VERSION, "Print the version and exit");
  root.footer(
      "MODEL is a directory with config.json, *.safetensors and tokenizer.json, or the\n"
      "id of a Hugging Face model in the local cache; without one, the embedded demo\n"
      "model runs.\n"
      "Exit status: 0 done, 1 failed, 2 wrong command line, 130 interrupted.");
  std::vector<kvq::Command> commands = {
      kvq::add_info(root), kvq::add_generate(root), kvq::add_eval(root),  kvq::add_norms(root),
      kvq::add_plan(root), kvq::add_analyze(root),  kvq::add_report(root)};
  CLI::App* bench = root.add_subcommand("bench", "Measure speed");
  bench->require_subcommand(0, 1);
  commands.push_back(kvq::add_bench_append(*bench));
  commands.push_back(kvq::add_bench_attention(*bench));
  commands.push_back(kvq::add_bench_eval(*bench));
  commands.push_back(kvq::add_bench_generate(*bench));
  try {
    root.parse(argument_count, arguments);
  } catch (const CLI::Success& help) {
    return root.exit(help);
  } catch (const CLI::ParseError& error) {
    fmt::print(stderr, "kvq: {}\n", error.what());
    return kWrongCommandLine;
  }
  return run_command(commands);
}

}  // namespace

int main(int argument_count, char** arguments) {
  try {
    return run(argument_count, arguments);
  } catch (const std::bad_alloc&) {
    std::fputs("kvq: out of memory\n", stderr);
  } catch (const std::exception& error) {
    std::fputs("kvq: ", stderr);
    std::fputs(error.what(), stderr);
    std::fputs("\n", stderr);
  }
  return kFailed;
}
