// Errors as values. A function that can fail on its input returns Status or Result<T>; the message
// is one line that names the file or field, what was expected and what was found.
#pragma once

#include <fmt/format.h>

#include <string>
#include <tl/expected.hpp>
#include <utility>

namespace kvq {

struct Error {
  std::string message;
};

template <typename T>
using Result = tl::expected<T, Error>;
using Status = Result<void>;

// fail("{}: expected {} rows, found {}", path, 64, rows) converts to any Result.
template <typename... Args>
[[nodiscard]] tl::unexpected<Error> fail(fmt::format_string<Args...> text, Args&&... args) {
  return tl::unexpected<Error>(Error{fmt::format(text, std::forward<Args>(args)...)});
}

}  // namespace kvq

// NOLINTBEGIN(bugprone-macro-parentheses): `left` and `result` are declarations
#define KVQ_CONCAT_INNER(a, b) a##b
#define KVQ_CONCAT(a, b) KVQ_CONCAT_INNER(a, b)

// Returns the error of `expression` (a Status or Result) from the enclosing function, if it has
// one.
#define KVQ_RETURN_IF_ERROR(expression)                                   \
  do {                                                                    \
    if (auto kvq_status = (expression); !kvq_status) {                    \
      return tl::unexpected<::kvq::Error>(std::move(kvq_status).error()); \
    }                                                                     \
  } while (false)

// KVQ_ASSIGN_OR_RETURN(auto value, make_value()): the value, or the enclosing function's error.
#define KVQ_ASSIGN_OR_RETURN(left, expression) \
  KVQ_ASSIGN_OR_RETURN_INNER(KVQ_CONCAT(kvq_result_, __LINE__), left, expression)
#define KVQ_ASSIGN_OR_RETURN_INNER(result, left, expression)                   \
  auto result = (expression);                                                  \
  if (!result) return tl::unexpected<::kvq::Error>(std::move(result).error()); \
  left = std::move(result).value()
// NOLINTEND(bugprone-macro-parentheses)
