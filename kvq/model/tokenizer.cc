#include "kvq/model/tokenizer.h"

#include <algorithm>
#include <limits>
#include <unordered_map>

#include "kvq/base/json_file.h"
#include "kvq/model/added_tokens.h"
#include "kvq/model/bpe.h"
#include "kvq/model/byte_level.h"
#include "kvq/model/post_processor.h"
#include "kvq/model/pre_tokenizer.h"
#include "kvq/model/utf8.h"

namespace kvq {
namespace {

// What decoding knows of an id.
struct TokenBytes {
  std::string bytes;
  bool special = false;
};

Status check_decoder(const JsonFields& tokenizer) {
  KVQ_ASSIGN_OR_RETURN(const JsonFields decoder, tokenizer.object("decoder"));
  KVQ_ASSIGN_OR_RETURN(const std::string type, decoder.text("type"));
  if (type != "ByteLevel") return decoder.wrong("type", "\"ByteLevel\"");
  return {};
}

}  // namespace

// Encoding: added tokens are cut out of the raw text; what is left is normalized; those added
// tokens that stand in normalized text are cut out; what is left is split into words; each word is
// encoded.
struct Tokenizer::State {
  Normalizer normalizer;
  AddedTokenMatcher raw_matcher;
  AddedTokenMatcher normalized_matcher;
  PreTokenizer pre_tokenizer;
  BytePairModel model;
  PostProcessor post_processor;
  std::vector<TokenBytes> tokens;  // by id

  static Result<State> read(const JsonFields& tokenizer);
  Status add_tokens(std::vector<AddedToken> added);
  void spell(int token, const std::string& spelling, bool special);
};

namespace {

// One call's words and their tokens: text repeats itself, byte-pair encoding is slow. Words are
// copied: their text may be gone when they come again.
class WordCache {
 public:
  explicit WordCache(const BytePairModel& model) : model_(model) {}

  void encode(std::string_view word, std::vector<int>& tokens) {
    if (word.size() > kLongestKept) return model_.encode(word, tokens);
    key_.assign(word);
    const auto [entry, is_new] = known_.try_emplace(key_);
    if (is_new) model_.encode(word, entry->second);
    tokens.insert(tokens.end(), entry->second.begin(), entry->second.end());
  }

 private:
  static constexpr std::size_t kLongestKept = 64;
  const BytePairModel& model_;
  std::unordered_map<std::string, std::vector<int>> known_;
  std::string key_;
};

}  // namespace

Result<Tokenizer::State> Tokenizer::State::read(const JsonFields& tokenizer) {
  // "truncation" and "padding" are ignored, as transformers does.
  KVQ_RETURN_IF_ERROR(check_decoder(tokenizer));
  KVQ_ASSIGN_OR_RETURN(Normalizer normalizer, Normalizer::read(tokenizer));
  KVQ_ASSIGN_OR_RETURN(PreTokenizer pre_tokenizer, PreTokenizer::read(tokenizer));
  KVQ_ASSIGN_OR_RETURN(PostProcessor post_processor, PostProcessor::read(tokenizer));
  KVQ_ASSIGN_OR_RETURN(const JsonFields model_fields, tokenizer.object("model"));
  KVQ_ASSIGN_OR_RETURN(BytePairModel model, BytePairModel::read(model_fields));
  KVQ_ASSIGN_OR_RETURN(std::vector<AddedToken> added,
                       read_added_tokens(tokenizer, model.vocabulary()));
  KVQ_ASSIGN_OR_RETURN(AddedTokenMatcher raw, AddedTokenMatcher::make());
  KVQ_ASSIGN_OR_RETURN(AddedTokenMatcher normalized, AddedTokenMatcher::make());
  State state{.normalizer = normalizer,
              .raw_matcher = std::move(raw),
              .normalized_matcher = std::move(normalized),
              .pre_tokenizer = std::move(pre_tokenizer),
              .model = std::move(model),
              .post_processor = std::move(post_processor),
              .tokens = {}};
  for (const auto& [spelling, token] : state.model.vocabulary()) {
    state.spell(token, spelling, false);
  }
  KVQ_RETURN_IF_ERROR(state.add_tokens(std::move(added)));
  KVQ_RETURN_IF_ERROR(state.post_processor.check_ids(static_cast<int>(state.tokens.size())));
  return state;
}

Status Tokenizer::State::add_tokens(std::vector<AddedToken> added) {
  for (AddedToken& token : added) {
    // Such a token is found, and decoded, by its normalized content.
    if (token.normalized) {
      KVQ_ASSIGN_OR_RETURN(token.content, normalizer.normalize(token.content));
    }
    spell(token.token, token.content, token.special);
    AddedTokenMatcher& matcher = token.normalized ? normalized_matcher : raw_matcher;
    matcher.add(std::move(token));
  }
  return {};
}

void Tokenizer::State::spell(int token, const std::string& spelling, bool special) {
  const auto id = static_cast<std::size_t>(token);
  if (id >= tokens.size()) tokens.resize(id + 1);
  // A spelling outside the byte-level alphabet stands for its own bytes.
  tokens[id] = {bytes_of_token(spelling).value_or(spelling), special};
}

Tokenizer::Tokenizer(std::unique_ptr<State> state) : state_(std::move(state)) {}
Tokenizer::Tokenizer(Tokenizer&&) noexcept = default;
Tokenizer& Tokenizer::operator=(Tokenizer&&) noexcept = default;
Tokenizer::~Tokenizer() = default;

Result<Tokenizer> Tokenizer::open(const std::filesystem::path& directory) {
  const std::filesystem::path path = directory / "tokenizer.json";
  KVQ_ASSIGN_OR_RETURN(const Json json, read_json_object(path));
  KVQ_ASSIGN_OR_RETURN(State state, State::read(JsonFields(json, path.string())));
  return Tokenizer(std::make_unique<State>(std::move(state)));
}

Result<std::vector<int>> Tokenizer::encode(std::string_view text, bool add_special_tokens) const {
  if (text.size() > std::numeric_limits<std::int32_t>::max()) {
    return fail("text: expected less than 2 GiB, found {} bytes", text.size());
  }
  if (const std::size_t invalid = first_invalid_utf8(text); invalid != text.size()) {
    return fail("text: expected UTF-8, found an invalid character at byte {}", invalid);
  }
  std::vector<int> tokens;
  WordCache words(state_->model);
  const auto add_word = [&](std::string_view word) { words.encode(word, tokens); };
  KVQ_ASSIGN_OR_RETURN(const auto raw_pieces, state_->raw_matcher.split(text));
  for (const TextPiece& raw : raw_pieces) {
    if (raw.token) {
      tokens.push_back(*raw.token);
      continue;
    }
    std::string composed;
    std::string_view normalized = raw.text;
    if (state_->normalizer.changes(raw.text)) {
      KVQ_ASSIGN_OR_RETURN(composed, state_->normalizer.normalize(raw.text));
      normalized = composed;
    }
    KVQ_ASSIGN_OR_RETURN(const auto pieces, state_->normalized_matcher.split(normalized));
    for (const TextPiece& piece : pieces) {
      if (piece.token) {
        tokens.push_back(*piece.token);
      } else {
        KVQ_RETURN_IF_ERROR(state_->pre_tokenizer.split(piece.text, add_word));
      }
    }
  }
  if (add_special_tokens) state_->post_processor.apply(tokens);
  return tokens;
}

std::string Tokenizer::decode(std::span<const int> tokens, bool with_special_tokens) const {
  std::string bytes;
  for (const int token : tokens) {
    if (token < 0 || token >= size()) continue;
    const TokenBytes& known = state_->tokens[static_cast<std::size_t>(token)];
    if (with_special_tokens || !known.special) bytes += known.bytes;
  }
  return bytes;
}

int Tokenizer::size() const { return static_cast<int>(state_->tokens.size()); }

}  // namespace kvq
