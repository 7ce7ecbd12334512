#include "kvq/model/pre_tokenizer.h"

#include <utf8proc.h>

#include <algorithm>
#include <cstdlib>
#include <memory>

#include "kvq/model/sequence_steps.h"

namespace kvq {
namespace {

// The words of GPT-2, which ByteLevel splits into where use_regex is set.
constexpr std::string_view kGpt2Words =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

}  // namespace

Result<Normalizer> Normalizer::read(const JsonFields& tokenizer) {
  Normalizer normalizer;
  if (!tokenizer.has("normalizer")) return normalizer;
  KVQ_ASSIGN_OR_RETURN(const JsonFields field, tokenizer.object("normalizer"));
  KVQ_ASSIGN_OR_RETURN(const std::vector<JsonFields> steps, sequence_steps(field, "normalizers"));
  for (const JsonFields& step : steps) {
    KVQ_ASSIGN_OR_RETURN(const std::string type, step.text("type"));
    if (type != "NFC") return step.wrong("type", "\"NFC\"");
    normalizer.compose_ = true;
  }
  return normalizer;
}

bool Normalizer::changes(std::string_view text) const {
  // Below U+0300 every character is composed, and its UTF-8 begins below 0xCC.
  return compose_ &&
         std::ranges::any_of(text, [](char c) { return static_cast<unsigned char>(c) >= 0xCC; });
}

Result<std::string> Normalizer::normalize(std::string_view text) const {
  if (!changes(text)) return std::string(text);
  utf8proc_uint8_t* composed = nullptr;
  const utf8proc_ssize_t size =
      utf8proc_map(reinterpret_cast<const utf8proc_uint8_t*>(text.data()),
                   static_cast<utf8proc_ssize_t>(text.size()), &composed,
                   static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE));
  const std::unique_ptr<utf8proc_uint8_t, decltype(&std::free)> owner(composed, &std::free);
  if (size < 0) return fail("normalizing to NFC: {}", utf8proc_errmsg(size));
  return std::string(reinterpret_cast<const char*>(composed), static_cast<std::size_t>(size));
}

Result<PreTokenizer> PreTokenizer::read(const JsonFields& tokenizer) {
  PreTokenizer result;
  KVQ_ASSIGN_OR_RETURN(const JsonFields field, tokenizer.object("pre_tokenizer"));
  KVQ_ASSIGN_OR_RETURN(const std::vector<JsonFields> steps, sequence_steps(field, "pretokenizers"));
  for (const JsonFields& step : steps) KVQ_RETURN_IF_ERROR(result.add(step));
  if (!result.has_byte_level_) {
    return fail("{}: expected a ByteLevel step, found none", field.where());
  }
  return result;
}

Status PreTokenizer::add(const JsonFields& step) {
  KVQ_ASSIGN_OR_RETURN(const std::string type, step.text("type"));
  // Steps behind it would see the byte-level alphabet instead of the text.
  if (has_byte_level_) return step.wrong("type", "nothing after ByteLevel");
  if (type == "Split") return add_split(step);
  if (type == "ByteLevel") return add_byte_level(step);
  return step.wrong("type", "\"Split\" or \"ByteLevel\"");
}

Status PreTokenizer::add_split(const JsonFields& step) {
  KVQ_ASSIGN_OR_RETURN(const std::string behavior, step.text("behavior"));
  if (behavior != "Isolated") return step.wrong("behavior", "\"Isolated\"");
  KVQ_ASSIGN_OR_RETURN(const bool invert, step.flag("invert", false));
  if (invert) return step.wrong("invert", "false");
  KVQ_ASSIGN_OR_RETURN(const JsonFields pattern, step.object("pattern"));
  KVQ_ASSIGN_OR_RETURN(const std::string text, pattern.text("Regex"));
  auto regex = Regex::compile(text);
  if (!regex) return fail("{}: Regex: {}", pattern.where(), regex.error().message);
  splits_.push_back(std::move(*regex));
  return {};
}

Status PreTokenizer::add_byte_level(const JsonFields& step) {
  has_byte_level_ = true;
  prefix_stage_ = splits_.size();
  KVQ_ASSIGN_OR_RETURN(add_prefix_space_, step.flag("add_prefix_space", true));
  KVQ_ASSIGN_OR_RETURN(const bool use_regex, step.flag("use_regex", true));
  if (!use_regex) return {};
  KVQ_ASSIGN_OR_RETURN(Regex words, Regex::compile(kGpt2Words));
  splits_.push_back(std::move(words));
  return {};
}

Status PreTokenizer::split(std::string_view text, const Word& word) const {
  return split_from(0, text, word);
}

Status PreTokenizer::split_from(std::size_t stage, std::string_view text, const Word& word) const {
  if (text.empty()) return {};
  std::string prefixed;
  if (stage == prefix_stage_ && add_prefix_space_ && !text.starts_with(' ')) {
    prefixed = " ";
    prefixed += text;
    text = prefixed;
  }
  if (stage == splits_.size()) {
    word(text);
    return {};
  }
  std::size_t position = 0;
  while (position < text.size()) {
    KVQ_ASSIGN_OR_RETURN(const auto match, splits_[stage].find(text, position));
    const std::size_t begin = match ? match->begin : text.size();
    KVQ_RETURN_IF_ERROR(split_from(stage + 1, text.substr(position, begin - position), word));
    if (!match) break;
    KVQ_RETURN_IF_ERROR(split_from(stage + 1, text.substr(begin, match->end - begin), word));
    position = match->end;
  }
  return {};
}

}  // namespace kvq
