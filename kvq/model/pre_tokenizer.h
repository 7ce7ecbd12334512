// The "normalizer" and "pre_tokenizer" of tokenizer.json: text to words.
#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "kvq/base/json_file.h"
#include "kvq/base/status.h"
#include "kvq/model/regex.h"

namespace kvq {

// None, or Unicode's canonical composition (NFC).
class Normalizer {
 public:
  // `tokenizer`: the whole file's object.
  static Result<Normalizer> read(const JsonFields& tokenizer);

  // Whether `text` may change.
  bool changes(std::string_view text) const;
  // `text` must be UTF-8.
  Result<std::string> normalize(std::string_view text) const;

 private:
  bool compose_ = false;
};

// Splits by regular expressions, then the byte level: a Sequence of any number of Splits and one
// ByteLevel, or a ByteLevel alone.
class PreTokenizer {
 public:
  // `tokenizer`: the whole file's object.
  static Result<PreTokenizer> read(const JsonFields& tokenizer);

  using Word = std::function<void(std::string_view)>;
  // Calls `word` with each word of `text` (UTF-8), in order; their bytes are valid during the call.
  Status split(std::string_view text, const Word& word) const;

 private:
  Status add(const JsonFields& step);
  Status add_split(const JsonFields& step);
  Status add_byte_level(const JsonFields& step);
  Status split_from(std::size_t stage, std::string_view text, const Word& word) const;

  // Each matches words of what the one before leaves whole; the text between matches is words too.
  std::vector<Regex> splits_;
  // The place in splits_ before which a space is put in front of text without one; splits_.size()
  // is the end.
  std::size_t prefix_stage_ = 0;
  bool add_prefix_space_ = false;
  bool has_byte_level_ = false;
};

}  // namespace kvq
