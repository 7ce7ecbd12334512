#include "kvq/model/added_tokens.h"

#include <algorithm>

#include "kvq/model/utf8.h"

namespace kvq {
namespace {

// Unicode's White_Space.
bool is_white_space(char32_t c) {
  return (c >= 0x9 && c <= 0xD) || c == 0x20 || c == 0x85 || c == 0xA0 || c == 0x1680 ||
         (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F ||
         c == 0x3000;
}

std::string_view first_character(std::string_view text) {
  return text.empty() ? text : text.substr(0, next_utf8(text).size);
}

std::string_view last_character(std::string_view text) {
  std::size_t begin = text.size();
  while (begin > 0 && (static_cast<unsigned char>(text[begin - 1]) & 0xC0U) == 0x80U) --begin;
  return begin == 0 ? text : text.substr(begin - 1);
}

// Bytes of white space at the end.
std::size_t trailing_space(std::string_view text) {
  std::string_view rest = text;
  while (!rest.empty() && is_white_space(code_point(last_character(rest)))) {
    rest.remove_suffix(last_character(rest).size());
  }
  return text.size() - rest.size();
}

// Bytes of white space at the start.
std::size_t leading_space(std::string_view text) {
  std::string_view rest = text;
  while (!rest.empty() && is_white_space(code_point(first_character(rest)))) {
    rest.remove_prefix(first_character(rest).size());
  }
  return text.size() - rest.size();
}

Result<AddedToken> read_added_token(const JsonFields& fields) {
  AddedToken token;
  KVQ_ASSIGN_OR_RETURN(token.content, fields.text("content"));
  if (token.content.empty()) return fields.wrong("content", "a text that is not empty");
  KVQ_ASSIGN_OR_RETURN(token.single_word, fields.flag("single_word", false));
  KVQ_ASSIGN_OR_RETURN(token.strips_left, fields.flag("lstrip", false));
  KVQ_ASSIGN_OR_RETURN(token.strips_right, fields.flag("rstrip", false));
  KVQ_ASSIGN_OR_RETURN(token.special, fields.flag("special", false));
  KVQ_ASSIGN_OR_RETURN(token.normalized, fields.flag("normalized", !token.special));
  return token;
}

}  // namespace

Result<AddedTokenMatcher> AddedTokenMatcher::make() {
  // Word characters as Unicode's UTS 18 defines them.
  KVQ_ASSIGN_OR_RETURN(
      Regex word_character,
      Regex::compile_native(R"([\p{Alphabetic}\p{M}\p{Nd}\p{Pc}\p{Join_Control}])"));
  return AddedTokenMatcher(std::move(word_character));
}

void AddedTokenMatcher::add(AddedToken token) {
  std::vector<AddedToken>& tokens = by_first_byte_[static_cast<unsigned char>(token.content[0])];
  const auto shorter = std::ranges::find_if(
      tokens, [&](const AddedToken& other) { return other.content.size() < token.content.size(); });
  tokens.insert(shorter, std::move(token));
}

const AddedToken* AddedTokenMatcher::match_at(std::string_view text, std::size_t position) const {
  for (const AddedToken& token : by_first_byte_[static_cast<unsigned char>(text[position])]) {
    if (text.substr(position).starts_with(token.content)) return &token;
  }
  return nullptr;
}

Result<bool> AddedTokenMatcher::touches_word(std::string_view before,
                                             std::string_view after) const {
  for (const std::string_view character : {last_character(before), first_character(after)}) {
    if (character.empty()) continue;
    KVQ_ASSIGN_OR_RETURN(const auto match, word_character_.find(character, 0));
    if (match) return true;
  }
  return false;
}

Result<std::vector<TextPiece>> AddedTokenMatcher::split(std::string_view text) const {
  std::vector<TextPiece> pieces;
  std::size_t done = 0;  // pieces cover the text up to here
  std::size_t position = 0;
  while (position < text.size()) {
    const AddedToken* token = match_at(text, position);
    if (token == nullptr) {
      ++position;
      continue;
    }
    std::size_t begin = position;
    std::size_t end = begin + token->content.size();
    position = end;
    if (token->single_word) {
      KVQ_ASSIGN_OR_RETURN(const bool touches,
                           touches_word(text.substr(0, begin), text.substr(end)));
      if (touches) continue;
    }
    if (token->strips_left) {
      begin = std::max(done, begin - trailing_space(text.substr(0, begin)));
    }
    if (token->strips_right) end += leading_space(text.substr(end));
    if (done < begin) pieces.push_back({{}, text.substr(done, begin - done)});
    pieces.push_back({token->token, text.substr(begin, end - begin)});
    done = end;
  }
  if (done < text.size()) pieces.push_back({{}, text.substr(done)});
  return pieces;
}

Result<std::vector<AddedToken>> read_added_tokens(
    const JsonFields& tokenizer, const std::unordered_map<std::string, int>& vocabulary) {
  std::vector<AddedToken> tokens;
  if (!tokenizer.has("added_tokens")) return tokens;
  KVQ_ASSIGN_OR_RETURN(const Json* list, tokenizer.list("added_tokens"));
  int next = static_cast<int>(vocabulary.size());
  for (std::size_t i = 0; i < list->size(); ++i) {
    const std::string where = fmt::format("{}: added_tokens[{}]", tokenizer.where(), i);
    if (!(*list)[i].is_object()) {
      return fail("{}: expected an object, found {}", where, shown((*list)[i]));
    }
    const JsonFields fields((*list)[i], where);
    KVQ_ASSIGN_OR_RETURN(AddedToken token, read_added_token(fields));
    const auto known = vocabulary.find(token.content);
    token.token = known != vocabulary.end() ? known->second : next;
    next = std::max(next, token.token + 1);
    if (!fields.has("id") || *fields.find("id") != token.token) {
      return fields.wrong("id", fmt::format("{} for {}", token.token, in_quotes(token.content)));
    }
    tokens.push_back(std::move(token));
  }
  return tokens;
}

}  // namespace kvq
