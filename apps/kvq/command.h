// The subcommands: each adds its options to the command line and, once that is read, runs.
#pragma once

#include <CLI/CLI.hpp>
#include <functional>

#include "kvq/base/status.h"

namespace kvq {

// Gives the exit status of the process (0, or kInterrupted); an error is a failed run.
using Run = std::function<Result<int>()>;

struct Command {
  CLI::App* app;
  Run run;
};

// 128 + SIGINT, as shells report a command that an interrupt ended.
inline constexpr int kInterrupted = 130;

Command add_info(CLI::App& root);
Command add_generate(CLI::App& root);
Command add_norms(CLI::App& root);
Command add_plan(CLI::App& root);
Command add_eval(CLI::App& root);
Command add_analyze(CLI::App& root);
Command add_report(CLI::App& root);
Command add_bench_append(CLI::App& bench);
Command add_bench_attention(CLI::App& bench);
Command add_bench_eval(CLI::App& bench);
Command add_bench_generate(CLI::App& bench);

}  // namespace kvq
