// kvq generate: text from prompts, on a packed cache.
#include <atomic>
#include <csignal>

#include "apps/kvq/command.h"
#include "apps/kvq/formats.h"
#include "apps/kvq/options.h"
#include "apps/kvq/output.h"
#include "kvq/base/file.h"
#include "kvq/eval/json_lines.h"
#include "kvq/runtime/generate.h"

namespace kvq {
namespace {

struct GenerateCommand {
  ModelOptions model;
  MachineOptions machine;
  CacheOptions cache;
  JsonOption json;
  std::vector<std::string> prompts;
  std::string prompt_file;
  std::string prompts_file;
  GenerateOptions generation;
};

std::atomic<bool> interrupted{false};

// The first interrupt ends the run after the current step; a second one kills the process.
void catch_interrupts() {
  struct sigaction action {};
  action.sa_handler = [](int) { interrupted = true; };
  action.sa_flags = static_cast<int>(SA_RESETHAND);
  sigaction(SIGINT, &action, nullptr);
}

Result<std::vector<std::string>> read_prompts(const GenerateCommand& command) {
  if (!command.prompts.empty()) return command.prompts;
  if (!command.prompt_file.empty()) {
    KVQ_ASSIGN_OR_RETURN(std::string text, read_file(command.prompt_file));
    if (text.empty()) return fail("{}: the prompt is empty", command.prompt_file);
    return std::vector<std::string>{std::move(text)};
  }
  KVQ_ASSIGN_OR_RETURN(const auto lines, read_json_lines(command.prompts_file));
  std::vector<std::string> texts;
  for (const JsonLine& line : lines) {
    KVQ_ASSIGN_OR_RETURN(std::string text, string_field(command.prompts_file, line, "prompt"));
    texts.push_back(std::move(text));
  }
  return texts;
}

std::string to_text(const Tokenizer& tokenizer, const std::vector<int>& tokens) {
  Utf8Stream stream;
  std::string text = stream.push(tokenizer.decode(tokens));
  return text + stream.finish();
}

void print_texts(std::FILE* out, const std::vector<std::string>& prompts,
                 const std::vector<std::string>& texts) {
  for (std::size_t i = 0; i < texts.size(); ++i) {
    fmt::print(out, "--- prompt {} of {}\n{}{}\n", i + 1, texts.size(), prompts[i], texts[i]);
  }
}

double rate(std::int64_t tokens, double seconds) {
  return seconds > 0 ? static_cast<double>(tokens) / seconds : 0;
}

// The result in numbers, for people and for programs.
struct Summary {
  const Generation& generation;
  const CacheSpec& spec;
  std::string format;
  std::string kernel;
  std::string compute;
  int threads;

  std::int64_t bytes() const { return generation.bytes.pages + generation.bytes.exact; }
  std::int64_t bytes_16bit() const { return cache_bytes_16bit(spec, generation.cached_tokens); }
  double prefill_rate() const {
    return rate(generation.prefill_tokens, generation.prefill_seconds);
  }
  double decode_rate() const { return rate(generation.decode_tokens, generation.decode_seconds); }

  std::string cache_text() const {
    if (generation.bytes.pages == 0) {
      return fmt::format("{}, all in 16 bits: no page of {} tokens has left the window",
                         human_bytes(bytes()), kPageTokens);
    }
    return fmt::format("{} instead of {} in 16 bits: {:.2f} times smaller", human_bytes(bytes()),
                       human_bytes(bytes_16bit()),
                       static_cast<double>(bytes_16bit()) / static_cast<double>(bytes()));
  }

  void print() const {
    std::int64_t made = 0;
    for (const auto& tokens : generation.tokens) made += static_cast<std::int64_t>(tokens.size());
    print_fields(
        stderr,
        {{"prompt", fmt::format("{} tokens, {} tokens/s", with_commas(generation.prefill_tokens),
                                with_commas(prefill_rate()))},
         {"new text",
          fmt::format("{} tokens, {} tokens/s", with_commas(made), with_commas(decode_rate()))},
         {"cache", cache_text()},
         {"format", fmt::format("{}, {:.3f} bits a packed number; the first {} and the newest {} "
                                "tokens in 16 bits",
                                format, effective_bits(spec), spec.sinks, spec.window)},
         {"kernel", fmt::format("{}, {} thread{}, weights in {}", kernel, threads,
                                threads == 1 ? "" : "s", compute)}});
  }

  nlohmann::ordered_json json(const std::vector<std::string>& texts) const {
    nlohmann::ordered_json outputs = nlohmann::ordered_json::array();
    for (std::size_t i = 0; i < texts.size(); ++i) {
      outputs.push_back({{"text", texts[i]}, {"tokens", generation.tokens[i]}});
    }
    return {{"outputs", outputs},
            {"prefill_tokens_per_s", prefill_rate()},
            {"decode_tokens_per_s", decode_rate()},
            {"cache_bytes", bytes()},
            {"cache_bytes_16bit", bytes_16bit()},
            {"effective_bits", effective_bits(spec)},
            {"kernel", kernel},
            {"format", format},
            {"interrupted", interrupted.load()}};
  }
};

// Prints the tokens of a single prompt as they come.
class TextStream {
 public:
  TextStream(const Tokenizer& tokenizer, std::FILE* out) : tokenizer_(tokenizer), out_(out) {}

  void push(int token) { print(stream_.push(tokenizer_.decode({&token, 1}))); }
  void finish() { print(stream_.finish() + "\n"); }

 private:
  void print(const std::string& text) {
    std::fwrite(text.data(), 1, text.size(), out_);
    std::fflush(out_);
  }

  const Tokenizer& tokenizer_;
  std::FILE* out_;
  Utf8Stream stream_;
};

Result<int> run_generate(GenerateCommand& command) {
  KVQ_RETURN_IF_ERROR(command.json.check());
  KVQ_ASSIGN_OR_RETURN(const std::vector<std::string> prompts, read_prompts(command));
  KVQ_ASSIGN_OR_RETURN(LoadedModel model, load_model(command.model, command.machine));
  KVQ_ASSIGN_OR_RETURN(const std::filesystem::path directory, command.model.find());
  KVQ_ASSIGN_OR_RETURN(
      const std::vector<CacheFormat> formats,
      cache_formats(command.cache, model.engine.config(), directory, {kDefaultSpec}));
  const auto& [format, spec] = formats.front();
  std::vector<std::vector<int>> tokens;
  for (const std::string& prompt : prompts) {
    KVQ_ASSIGN_OR_RETURN(std::vector<int> ids, model.tokenizer.encode(prompt, true));
    tokens.push_back(std::move(ids));
  }
  std::FILE* out = command.json.tables();
  TextStream stream(model.tokenizer, out);
  const bool streamed = prompts.size() == 1;
  if (streamed) command.generation.on_token = [&](int, int token) { stream.push(token); };
  command.generation.interrupted = &interrupted;
  catch_interrupts();
  KVQ_ASSIGN_OR_RETURN(
      const Generation generation,
      generate(model.engine, tokens, spec, command.cache.pool(), command.generation));

  std::vector<std::string> texts;
  for (const auto& made : generation.tokens) texts.push_back(to_text(model.tokenizer, made));
  if (streamed)
    stream.finish();
  else
    print_texts(out, prompts, texts);
  std::fflush(out);
  const Summary summary{generation,
                        *spec,
                        format,
                        kernel_names(model.engine, *spec, /*decode=*/true),
                        model.engine.compute_name(),
                        model.engine.threads().size()};
  fmt::print(stderr, "\n");
  if (interrupted) fmt::print(stderr, "interrupted\n");
  summary.print();
  KVQ_RETURN_IF_ERROR(command.json.write(summary.json(texts)));
  return interrupted ? kInterrupted : 0;
}

void add_prompts(CLI::App& app, GenerateCommand& command) {
  app.add_option("-p,--prompt", command.prompts,
                 "The text to continue; repeated, the prompts run as a batch")
      ->type_name("TEXT")
      ->allow_extra_args(false)
      ->check(CLI::Validator(
          [](std::string& text) { return std::string(text.empty() ? "the prompt is empty" : ""); },
          ""));
  app.add_option("-f,--file", command.prompt_file, "A file with the text to continue")
      ->type_name("FILE");
  app.add_option("--prompts", command.prompts_file,
                 "A file of {\"prompt\": TEXT} lines that run as a batch")
      ->type_name("FILE.jsonl");
}

void check_prompts(const GenerateCommand& command) {
  const int sources = (command.prompts.empty() ? 0 : 1) + (command.prompt_file.empty() ? 0 : 1) +
                      (command.prompts_file.empty() ? 0 : 1);
  if (sources != 1) {
    throw CLI::ValidationError("generate", "expected exactly one of -p, -f and --prompts");
  }
}

void add_sampling(CLI::App& app, GenerateCommand& command) {
  GenerateOptions& generation = command.generation;
  app.add_option("-n,--tokens", generation.max_new_tokens, "New tokens, at most [128]")
      ->type_name("N")
      ->check(CLI::Range(1, 1 << 24));
  app.add_option("--temperature", generation.sampling.temperature,
                 "Flattens (above 1) or sharpens the choice of tokens; 0 takes the likeliest [0]")
      ->type_name("N")
      ->check(CLI::Range(0.0, 100.0));
  app.add_option("--top-k", generation.sampling.top_k, "Choose among the K likeliest [all]")
      ->type_name("N")
      ->check(CLI::Range(0, 1 << 24));
  app.add_option("--top-p", generation.sampling.top_p,
                 "Choose among the likeliest that hold P of the probability [1]")
      ->type_name("N")
      ->check(CLI::Range(0.0, 1.0));
  app.add_option("--seed", generation.sampling.seed, "Seed of the sampling [0]")->type_name("N");
}

}  // namespace

Command add_generate(CLI::App& root) {
  CLI::App* app = root.add_subcommand("generate", "Continue text on a packed cache");
  auto command = std::make_shared<GenerateCommand>();
  command->model.add(*app);
  add_prompts(*app, *command);
  add_sampling(*app, *command);
  command->cache.add(*app, /*several=*/false);
  command->cache.add_plan(*app, /*several=*/false);
  command->cache.add_memory(*app, "Memory for the cache; a run that needs more fails [no limit]");
  command->machine.add_prefill(*app);
  command->machine.add_threads(*app);
  command->machine.add_isa(*app);
  command->machine.add_device(*app);
  command->json.add(*app);
  app->parse_complete_callback([command] { check_prompts(*command); });
  app->footer(
      fmt::format("The default format is {} (--window 64 --sinks 4). Ctrl-C ends the text after\n"
                  "the current token and still prints the summary (exit status {}).",
                  kDefaultSpec, kInterrupted));
  return {app, [command] { return run_generate(*command); }};
}

}  // namespace kvq
