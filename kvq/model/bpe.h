// Byte-pair encoding of one word: the "model" of a byte-level tokenizer.json.
//
// A word starts as one token a byte. As long as two neighbors form a merge, the pair whose merge
// stands first in the file (the leftmost of equals) becomes one token.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "kvq/base/json_file.h"
#include "kvq/base/status.h"

namespace kvq {

struct Merge {
  std::uint32_t rank = 0;  // place in the file; lower merges first
  std::int32_t token = 0;  // what the pair becomes
};

// (left, right) -> Merge: open addressing in one flat array, at most half full.
class MergeTable {
 public:
  explicit MergeTable(std::size_t merges);
  // A pair that comes again replaces the former merge.
  void insert(std::int32_t left, std::int32_t right, Merge merge);
  // nullptr where the pair does not merge.
  const Merge* find(std::int32_t left, std::int32_t right) const;

 private:
  struct Slot {
    std::uint64_t pair = kEmpty;
    Merge merge;
  };
  static constexpr std::uint64_t kEmpty = ~std::uint64_t{0};
  std::size_t slot_of(std::uint64_t pair) const;

  std::vector<Slot> slots_;  // a power of two
};

class BytePairModel {
 public:
  // Reads the "model" object. Its vocabulary must have a token for each of the 256 bytes.
  static Result<BytePairModel> read(const JsonFields& model);

  // Appends the tokens of `word`, any bytes.
  void encode(std::string_view word, std::vector<int>& tokens) const;

  // The id of each token as the file spells it.
  const std::unordered_map<std::string, int>& vocabulary() const { return vocabulary_; }

 private:
  BytePairModel() : merges_(0) {}
  Status read_vocabulary(const JsonFields& model);
  Status read_merges(const JsonFields& model);
  Result<int> token_of(std::string_view spelling, const JsonFields& model, std::size_t merge) const;
  void read_whole_words();

  std::unordered_map<std::string, int> vocabulary_;
  std::array<int, 256> byte_tokens_{};
  MergeTable merges_;
  // Where the file says ignore_merges: words that are one token, whatever the merges, by their
  // bytes. Empty otherwise.
  std::unordered_map<std::string, int> whole_words_;
};

}  // namespace kvq
