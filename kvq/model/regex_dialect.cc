// From Oniguruma's dialect (its Ruby syntax) to PCRE2's. Both agree on literals, classes,
// categories, greedy, lazy and possessive repetition, groups and lookarounds. Translated:
//
//   Oniguruma                      PCRE2 reads             written as
//   \s, \S   White_Space           also U+180E             \p{White_Space}, \P{White_Space}
//   \v       the vertical tab      any vertical space      \x0b
//   \uHHHH   a code point          (an error)              \x{HHHH}
//   \p{Han}  a script              its script extensions   \p{sc:Han}
//
// Refused: ^ and $ (lines there), \w \b \h \R and other escapes, classes within classes, {n}+, and
// groups other than (?: (?= (?! (?> (?<= (?<! (?i:
#include <algorithm>
#include <array>
#include <cctype>

#include "kvq/base/json_file.h"
#include "kvq/model/regex.h"

namespace kvq {
namespace {

class Translator {
 public:
  explicit Translator(std::string_view pattern) : rest_(pattern) {}

  Result<std::string> run() {
    while (!rest_.empty()) {
      KVQ_RETURN_IF_ERROR(in_class_ ? class_item() : item());
    }
    if (in_class_) return fail("unterminated [");
    return std::move(out_);
  }

 private:
  void copy(std::size_t count) {
    out_ += rest_.substr(0, count);
    rest_.remove_prefix(count);
  }

  Status item() {
    switch (rest_.front()) {
      case '\\':
        return escape();
      case '[':
        return open_class();
      case '(':
        return open_group();
      case '{':
        return repetition();
      case '^':
      case '$':
        return fail("{} is not supported", rest_.front());
      default:
        copy(1);
        return {};
    }
  }

  Status open_class() {
    const bool negated = rest_.substr(1).starts_with('^');
    if (rest_.substr(negated ? 2 : 1).starts_with(']')) return fail("] first in a class");
    copy(negated ? 2 : 1);
    in_class_ = true;
    return {};
  }

  Status class_item() {
    if (rest_.front() == '\\') return escape();
    if (rest_.front() == '[') return fail("a class within a class is not supported");
    if (rest_.starts_with("&&")) return fail("&& is not supported");
    in_class_ = rest_.front() != ']';
    copy(1);
    return {};
  }

  Status open_group() {
    constexpr std::array<std::string_view, 7> kGroups = {"(?:",  "(?=",  "(?!", "(?>",
                                                         "(?<=", "(?<!", "(?i:"};
    if (!rest_.starts_with("(?")) {
      if (rest_.starts_with("(*")) return fail("(* is not supported");
      copy(1);
      return {};
    }
    const auto* group = std::ranges::find_if(
        kGroups, [&](std::string_view start) { return rest_.starts_with(start); });
    if (group == kGroups.end()) return fail("group {} is not supported", in_quotes(rest_));
    copy(group->size());
    return {};
  }

  // {n}, {n,}, {n,m}; with a + behind it Oniguruma repeats where PCRE2 is possessive.
  Status repetition() {
    const std::size_t end = rest_.find('}');
    const std::string_view counts = rest_.substr(1, end == rest_.npos ? 0 : end - 1);
    const std::size_t digits = std::min(counts.find_first_not_of("0123456789"), counts.size());
    const std::string_view tail = counts.substr(digits);
    const bool good =
        digits > 0 &&
        (tail.empty() || (tail.front() == ',' &&
                          tail.find_first_not_of("0123456789", 1) == std::string_view::npos));
    if (!good || rest_.substr(end + 1).starts_with('+')) {
      return fail("repetition {} is not supported", in_quotes(rest_.substr(0, 8)));
    }
    copy(end + 1);
    return {};
  }

  Status escape() {
    if (rest_.size() < 2) return fail("\\ at the end");
    const char c = rest_[1];
    if (c == 'p' || c == 'P') return property();
    if (c == 'u') return code_unit();
    constexpr std::string_view kSame = "dDtnrfaex";
    if (c == 's' || c == 'S') {
      out_ += c == 's' ? "\\p{White_Space}" : "\\P{White_Space}";
      rest_.remove_prefix(2);
    } else if (c == 'v') {
      out_ += "\\x0b";
      rest_.remove_prefix(2);
    } else if (kSame.find(c) != std::string_view::npos ||
               std::ispunct(static_cast<unsigned char>(c)) != 0) {
      copy(2);
    } else {
      return fail("\\{} is not supported", in_quotes(rest_.substr(1, 1)));
    }
    return {};
  }

  // \p{L}, \p{Lu}, \p{^L}: categories; longer names: scripts.
  Status property() {
    const std::size_t end = rest_.find('}');
    if (end == rest_.npos || rest_[2] != '{') return fail("expected {{...}} after \\{}", rest_[1]);
    std::string_view property_name = rest_.substr(3, end - 3);
    bool negated = rest_[1] == 'P';
    if (property_name.starts_with('^')) {
      property_name.remove_prefix(1);
      negated = !negated;
    }
    out_ += fmt::format("\\{}{{{}{}}}", negated ? 'P' : 'p', property_name.size() > 2 ? "sc:" : "",
                        property_name);
    rest_.remove_prefix(end + 1);
    return {};
  }

  Status code_unit() {
    const std::string_view digits = rest_.substr(2, 4);
    const bool good = digits.size() == 4 && std::ranges::all_of(digits, [](char c) {
                        return std::isxdigit(static_cast<unsigned char>(c)) != 0;
                      });
    if (!good) return fail("expected four hexadecimal digits after \\u");
    out_ += fmt::format("\\x{{{}}}", digits);
    rest_.remove_prefix(6);
    return {};
  }

  std::string_view rest_;
  std::string out_;
  bool in_class_ = false;
};

}  // namespace

Result<std::string> translate_regex(std::string_view pattern) { return Translator(pattern).run(); }

}  // namespace kvq
