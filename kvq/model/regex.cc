#define PCRE2_CODE_UNIT_WIDTH 8
#include "kvq/model/regex.h"

#include <pcre2.h>

#include <array>

#include "kvq/base/json_file.h"

namespace kvq {
namespace {

constexpr std::size_t kStackStart = std::size_t{32} << 10U;
constexpr std::size_t kStackLimit = std::size_t{8} << 20U;

std::string message_of(int code) {
  std::array<PCRE2_UCHAR, 256> text{};
  pcre2_get_error_message(code, text.data(), text.size());
  return reinterpret_cast<const char*>(text.data());
}

// What a match needs besides the pattern; one a thread, as matching is not reentrant on it.
struct Workspace {
  pcre2_match_data* data = pcre2_match_data_create(1, nullptr);
  pcre2_match_context* context = pcre2_match_context_create(nullptr);
  pcre2_jit_stack* stack = pcre2_jit_stack_create(kStackStart, kStackLimit, nullptr);

  Workspace() { pcre2_jit_stack_assign(context, nullptr, stack); }
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;
  ~Workspace() {
    pcre2_jit_stack_free(stack);
    pcre2_match_context_free(context);
    pcre2_match_data_free(data);
  }
};

}  // namespace

void Regex::Free::operator()(void* code) const { pcre2_code_free(static_cast<pcre2_code*>(code)); }

Result<Regex> Regex::compile(std::string_view pattern) {
  const auto translated = translate_regex(pattern);
  if (!translated) return fail("{}: {}", in_quotes(pattern), translated.error().message);
  return compile_native(*translated);
}

Result<Regex> Regex::compile_native(std::string_view pattern) {
  // "." excludes the line feed alone, whatever PCRE2 was built with.
  const std::string source = fmt::format("(*LF){}", pattern);
  int error = 0;
  PCRE2_SIZE where = 0;
  pcre2_code* code = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(source.data()), source.size(),
                                   PCRE2_UTF | PCRE2_UCP, &error, &where, nullptr);
  if (code == nullptr) return fail("{}: {}", in_quotes(pattern), message_of(error));
  Regex regex;
  regex.code_.reset(code);
  std::uint32_t matches_empty = 0;
  pcre2_pattern_info(code, PCRE2_INFO_MATCHEMPTY, &matches_empty);
  if (matches_empty != 0) return fail("{}: may match nothing", in_quotes(pattern));
  // Where the machine has no JIT compiler the interpreter gives the same matches.
  pcre2_jit_compile(code, PCRE2_JIT_COMPLETE);
  return regex;
}

Result<std::optional<RegexMatch>> Regex::find(std::string_view subject, std::size_t from) const {
  thread_local Workspace workspace;
  const int count = pcre2_match(static_cast<const pcre2_code*>(code_.get()),
                                reinterpret_cast<PCRE2_SPTR>(subject.data()), subject.size(), from,
                                PCRE2_NO_UTF_CHECK, workspace.data, workspace.context);
  if (count == PCRE2_ERROR_NOMATCH) return std::nullopt;
  if (count < 0) return fail("regular expression: {}", message_of(count));
  const PCRE2_SIZE* bounds = pcre2_get_ovector_pointer(workspace.data);
  return RegexMatch{bounds[0], bounds[1]};
}

}  // namespace kvq
