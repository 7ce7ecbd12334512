// Regular expressions of tokenizer.json, run by PCRE2.
//
// The files are written for Oniguruma (the engine of Hugging Face's tokenizers). What both engines
// read alike is passed through, what they spell differently is translated, and everything else is
// an error: no pattern runs with another meaning than its author's. Characters newer than PCRE2's
// Unicode tables count as unassigned: neither letters nor numbers.
#pragma once

#include <cstddef>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "kvq/base/status.h"

namespace kvq {

// The pattern in PCRE2's dialect; the error names the construct that is not understood.
Result<std::string> translate_regex(std::string_view pattern);

struct RegexMatch {
  std::size_t begin = 0;  // bytes from the start of the subject
  std::size_t end = 0;
};

class Regex {
 public:
  // A pattern in Oniguruma's dialect. Patterns that match the empty string are refused.
  static Result<Regex> compile(std::string_view pattern);
  // A pattern in PCRE2's own dialect.
  static Result<Regex> compile_native(std::string_view pattern);

  // The leftmost match at or after byte `from` of `subject`, valid UTF-8; lookbehinds see what
  // stands before `from`. Thread-safe.
  Result<std::optional<RegexMatch>> find(std::string_view subject, std::size_t from) const;

 private:
  struct Free {
    void operator()(void* code) const;
  };
  std::unique_ptr<void, Free> code_;
};

}  // namespace kvq
