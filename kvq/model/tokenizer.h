// tokenizer.json: byte-level BPE as Llama 3, Qwen and GPT-2 use it.
#pragma once

#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kvq/base/status.h"

namespace kvq {

class Tokenizer {
 public:
  // Reads directory/tokenizer.json. A tokenizer of another kind (unigram, wordpiece, a
  // pre-tokenizer or normalizer that is not understood) is an error that names what was found.
  static Result<Tokenizer> open(const std::filesystem::path& directory);
  Tokenizer(Tokenizer&&) noexcept;
  Tokenizer& operator=(Tokenizer&&) noexcept;
  ~Tokenizer();

  // Special tokens that occur in the text are recognized. With add_special_tokens, those that the
  // file's post-processor adds (the begin-of-text token of Llama 3) are added. The text must be
  // UTF-8.
  Result<std::vector<int>> encode(std::string_view text, bool add_special_tokens) const;

  // The bytes of the tokens; ids out of range give nothing. Special tokens are left out unless
  // with_special_tokens. Not necessarily whole UTF-8 characters: see Utf8Stream.
  std::string decode(std::span<const int> tokens, bool with_special_tokens = false) const;

  int size() const;  // ids are below this

 private:
  struct State;
  explicit Tokenizer(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

// Joins the bytes of successive tokens and gives out only whole UTF-8 characters.
class Utf8Stream {
 public:
  // `bytes` added; what can be shown now. Bytes that can never become a character come out as
  // U+FFFD.
  std::string push(std::string_view bytes);
  // What is left at the end, incomplete characters as U+FFFD.
  std::string finish();

 private:
  std::string pending_;
};

}  // namespace kvq
