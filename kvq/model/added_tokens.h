// The "added_tokens" of tokenizer.json: texts that are one token wherever they stand.
#pragma once

#include <array>
#include <cstddef>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "kvq/base/json_file.h"
#include "kvq/base/status.h"
#include "kvq/model/regex.h"

namespace kvq {

struct AddedToken {
  int token = 0;
  std::string content;
  bool single_word = false;   // only where no word character touches it
  bool strips_left = false;   // takes the white space before it along
  bool strips_right = false;  // takes the white space after it along
  bool normalized = false;    // looked for in the normalized text, by its normalized content
  bool special = false;       // left out when decoding
};

// A piece of text: an added token, or ordinary text where `token` is empty.
struct TextPiece {
  std::optional<int> token;
  std::string_view text;
};

// Finds some of the added tokens.
class AddedTokenMatcher {
 public:
  static Result<AddedTokenMatcher> make();
  void add(AddedToken token);

  // `text` cut into pieces, none empty: the leftmost token first, the longest of those that begin
  // at one place.
  Result<std::vector<TextPiece>> split(std::string_view text) const;

 private:
  explicit AddedTokenMatcher(Regex word_character) : word_character_(std::move(word_character)) {}
  const AddedToken* match_at(std::string_view text, std::size_t position) const;
  // Whether a word character ends `before` or begins `after`.
  Result<bool> touches_word(std::string_view before, std::string_view after) const;

  std::array<std::vector<AddedToken>, 256> by_first_byte_;  // longest first
  Regex word_character_;
};

// Reads the list. Ids must be what the tokenizers library gives: the vocabulary's for content that
// it has, else the next one free.
Result<std::vector<AddedToken>> read_added_tokens(
    const JsonFields& tokenizer, const std::unordered_map<std::string, int>& vocabulary);

}  // namespace kvq
