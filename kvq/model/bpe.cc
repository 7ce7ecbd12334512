#include "kvq/model/bpe.h"

#include <algorithm>
#include <bit>
#include <tuple>

#include "kvq/model/byte_level.h"

namespace kvq {
namespace {

// Far above any vocabulary; keeps arrays indexed by id small whatever a file says.
constexpr std::uint64_t kTokenLimit = std::uint64_t{1} << 24U;

std::uint64_t pair_of(std::int32_t left, std::int32_t right) {
  return static_cast<std::uint64_t>(static_cast<std::uint32_t>(left)) << 32U |
         static_cast<std::uint32_t>(right);
}

// A merge that may be done: of the symbol at `position` and the one after it.
struct Candidate {
  std::uint32_t rank;
  std::uint32_t position;
  std::int32_t token;  // what the pair becomes

  // Orders a heap: its front has the lowest rank, then the lowest position.
  bool operator<(const Candidate& other) const {
    return std::tie(rank, position) > std::tie(other.rank, other.position);
  }
};

// A word as a linked list of tokens over its bytes.
struct Symbol {
  std::int32_t token;
  std::uint32_t previous;
  std::uint32_t next;  // the word's size: none
  bool merged_away = false;
};

class WordMerger {
 public:
  WordMerger(const MergeTable& merges, std::vector<Symbol>& symbols)
      : merges_(merges), symbols_(symbols) {}

  void run() {
    for (std::uint32_t i = 0; i + 1 < symbols_.size(); ++i) push(i);
    while (!candidates_.empty()) {
      std::pop_heap(candidates_.begin(), candidates_.end());
      const Candidate best = candidates_.back();
      candidates_.pop_back();
      if (is_current(best)) merge(best);
    }
  }

 private:
  void push(std::uint32_t position) {
    const Symbol& left = symbols_[position];
    if (left.next == symbols_.size()) return;
    const Merge* merge = merges_.find(left.token, symbols_[left.next].token);
    if (merge == nullptr) return;
    candidates_.push_back({merge->rank, position, merge->token});
    std::push_heap(candidates_.begin(), candidates_.end());
  }

  // Whether the pair still stands there: either side may have been merged since.
  bool is_current(const Candidate& candidate) const {
    const Symbol& left = symbols_[candidate.position];
    if (left.merged_away || left.next == symbols_.size()) return false;
    const Merge* merge = merges_.find(left.token, symbols_[left.next].token);
    return merge != nullptr && merge->rank == candidate.rank;
  }

  void merge(const Candidate& candidate) {
    Symbol& left = symbols_[candidate.position];
    Symbol& right = symbols_[left.next];
    right.merged_away = true;
    left.token = candidate.token;
    left.next = right.next;
    if (left.next < symbols_.size()) symbols_[left.next].previous = candidate.position;
    push(candidate.position);
    if (candidate.position > 0) push(left.previous);
  }

  const MergeTable& merges_;
  std::vector<Symbol>& symbols_;
  std::vector<Candidate> candidates_;
};

// Options that give other tokens than plain byte-level BPE must be off.
Status check_options(const JsonFields& model) {
  KVQ_ASSIGN_OR_RETURN(const std::string type, model.text("type", "BPE"));
  if (type != "BPE") return model.wrong("type", "\"BPE\"");
  for (const char* field : {"continuing_subword_prefix", "end_of_word_suffix", "unk_token"}) {
    KVQ_ASSIGN_OR_RETURN(const std::string text, model.text(field, ""));
    if (!text.empty()) return model.wrong(field, "none");
  }
  for (const char* field : {"byte_fallback", "fuse_unk"}) {
    KVQ_ASSIGN_OR_RETURN(const bool set, model.flag(field, false));
    if (set) return model.wrong(field, "false");
  }
  if (model.has("dropout") && *model.find("dropout") != 0) return model.wrong("dropout", "none");
  return {};
}

// A merge's two halves: "a b" or ["a", "b"]; empty where it is neither.
std::pair<std::string_view, std::string_view> split_merge(const Json& merge) {
  if (merge.is_string()) {
    const std::string_view text = merge.get_ref<const std::string&>();
    const std::size_t space = text.find(' ');
    if (space == text.npos || text.find(' ', space + 1) != text.npos) return {};
    return {text.substr(0, space), text.substr(space + 1)};
  }
  if (!merge.is_array() || merge.size() != 2 || !merge[0].is_string() || !merge[1].is_string()) {
    return {};
  }
  return {merge[0].get_ref<const std::string&>(), merge[1].get_ref<const std::string&>()};
}

}  // namespace

MergeTable::MergeTable(std::size_t merges) : slots_(std::bit_ceil(2 * merges + 1)) {}

std::size_t MergeTable::slot_of(std::uint64_t pair) const {
  // Fibonacci hashing; the upper half of the product mixes both ids.
  constexpr std::uint64_t kGolden = 0x9E3779B97F4A7C15U;
  std::size_t slot = (pair * kGolden) >> 32U & (slots_.size() - 1);
  while (slots_[slot].pair != pair && slots_[slot].pair != kEmpty) {
    slot = (slot + 1) & (slots_.size() - 1);
  }
  return slot;
}

void MergeTable::insert(std::int32_t left, std::int32_t right, Merge merge) {
  const std::uint64_t pair = pair_of(left, right);
  slots_[slot_of(pair)] = {pair, merge};
}

const Merge* MergeTable::find(std::int32_t left, std::int32_t right) const {
  const Slot& slot = slots_[slot_of(pair_of(left, right))];
  return slot.pair == kEmpty ? nullptr : &slot.merge;
}

Result<BytePairModel> BytePairModel::read(const JsonFields& model) {
  KVQ_RETURN_IF_ERROR(check_options(model));
  BytePairModel result;
  KVQ_RETURN_IF_ERROR(result.read_vocabulary(model));
  KVQ_RETURN_IF_ERROR(result.read_merges(model));
  KVQ_ASSIGN_OR_RETURN(const bool ignore_merges, model.flag("ignore_merges", false));
  if (ignore_merges) result.read_whole_words();
  return result;
}

Status BytePairModel::read_vocabulary(const JsonFields& model) {
  KVQ_RETURN_IF_ERROR(model.object("vocab"));
  const Json& tokens = *model.find("vocab");
  std::unordered_map<int, std::string_view> spelling_of;
  for (const auto& [spelling, id] : tokens.items()) {
    if (!id.is_number_unsigned() || id.get<std::uint64_t>() >= kTokenLimit) {
      return fail("{}: vocab: token {}: expected an id below {}, found {}", model.where(),
                  in_quotes(spelling), kTokenLimit, shown(id));
    }
    const int token = id.get<int>();
    const auto [other, is_first] = spelling_of.emplace(token, spelling);
    if (!is_first) {
      return fail("{}: vocab: tokens {} and {} both have id {}", model.where(),
                  in_quotes(other->second), in_quotes(spelling), token);
    }
    vocabulary_.emplace(spelling, token);
  }
  for (std::size_t byte = 0; byte < 256; ++byte) {
    const std::string spelling = token_of_byte(static_cast<unsigned char>(byte));
    const auto found = vocabulary_.find(spelling);
    if (found == vocabulary_.end()) {
      return fail(
          "{}: vocab: expected a token {} for byte {}, found none (not a byte-level "
          "vocabulary)",
          model.where(), in_quotes(spelling), byte);
    }
    byte_tokens_[byte] = found->second;
  }
  return {};
}

Result<int> BytePairModel::token_of(std::string_view spelling, const JsonFields& model,
                                    std::size_t merge) const {
  const auto found = vocabulary_.find(std::string(spelling));
  if (found != vocabulary_.end()) return found->second;
  return fail("{}: merges: entry {}: {} is not in vocab", model.where(), merge,
              in_quotes(spelling));
}

Status BytePairModel::read_merges(const JsonFields& model) {
  KVQ_ASSIGN_OR_RETURN(const Json* merges, model.list("merges"));
  merges_ = MergeTable(merges->size());
  for (std::size_t i = 0; i < merges->size(); ++i) {
    const auto [left, right] = split_merge((*merges)[i]);
    if (left.empty() || right.empty()) {
      return fail("{}: merges: entry {}: expected \"a b\" or [\"a\", \"b\"], found {}",
                  model.where(), i, shown((*merges)[i]));
    }
    KVQ_ASSIGN_OR_RETURN(const int left_token, token_of(left, model, i));
    KVQ_ASSIGN_OR_RETURN(const int right_token, token_of(right, model, i));
    KVQ_ASSIGN_OR_RETURN(const int token, token_of(fmt::format("{}{}", left, right), model, i));
    merges_.insert(left_token, right_token, {static_cast<std::uint32_t>(i), token});
  }
  return {};
}

void BytePairModel::read_whole_words() {
  for (const auto& [spelling, token] : vocabulary_) {
    // Tokens outside the alphabet spell no bytes, so no word is one of them.
    if (auto bytes = bytes_of_token(spelling)) whole_words_.emplace(std::move(*bytes), token);
  }
}

void BytePairModel::encode(std::string_view word, std::vector<int>& tokens) const {
  if (!whole_words_.empty()) {
    if (const auto found = whole_words_.find(std::string(word)); found != whole_words_.end()) {
      tokens.push_back(found->second);
      return;
    }
  }
  std::vector<Symbol> symbols;
  symbols.reserve(word.size());
  for (std::uint32_t i = 0; i < word.size(); ++i) {
    const int token = byte_tokens_[static_cast<unsigned char>(word[i])];
    symbols.push_back({.token = token, .previous = i - 1, .next = i + 1});
  }
  WordMerger(merges_, symbols).run();
  for (std::uint32_t i = 0; i < symbols.size(); i = symbols[i].next) {
    tokens.push_back(symbols[i].token);
  }
}

}  // namespace kvq
