// tokenizer.json files that must be refused, or survived.
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <random>

#include "kvq/base/file.h"
#include "kvq/base/test_directory.h"
#include "kvq/model/regex.h"
#include "kvq/model/tokenizer.h"

namespace kvq {
namespace {

using Json = nlohmann::json;
using Pointer = Json::json_pointer;

std::string fixture_text(const std::string& tokenizer) {
  return read_file(std::filesystem::path(KVQ_SOURCE_DIR "/tests/fixtures/tokenizer") / tokenizer /
                   "tokenizer.json")
      .value();
}

Result<Tokenizer> open_text(std::string_view text) {
  const TestDirectory directory;
  directory.write("tokenizer.json", text);
  return Tokenizer::open(directory.path());
}

struct Change {
  const char* tokenizer;
  const char* pointer;  // what is replaced in its file
  const char* value;
  const char* where;
  const char* reason;
};

TEST(TokenizerFile, RefusesWhatItDoesNotUnderstand) {
  constexpr Change kChanges[] = {
      {"gpt2", "/model", "null", "model", "expected an object, found nothing"},
      {"gpt2", "/model/type", "\"Unigram\"", "model: type", "expected \"BPE\", found \"Unigram\""},
      {"gpt2", "/model/type", "\"WordPiece\"", "model: type", "\"WordPiece\""},
      {"gpt2", "/model/dropout", "0.1", "model: dropout", "found 0.1"},
      {"gpt2", "/model/byte_fallback", "true", "model: byte_fallback", "found true"},
      {"gpt2", "/model/fuse_unk", "true", "model: fuse_unk", "found true"},
      {"gpt2", "/model/unk_token", "\"<unk>\"", "model: unk_token", "found \"<unk>\""},
      {"gpt2", "/model/continuing_subword_prefix", "\"##\"", "continuing_subword_prefix", "\"##\""},
      {"gpt2", "/model/end_of_word_suffix", "\"</w>\"", "end_of_word_suffix", "\"</w>\""},
      {"gpt2", "/model/ignore_merges", "1", "model: ignore_merges", "true or false"},
      {"gpt2", "/model/vocab", "[]", "model: vocab", "an object"},
      {"gpt2", "/model/vocab", "{}", "model: vocab", "for byte 0, found none"},
      {"gpt2", "/model/vocab/a", "-1", "model: vocab: token \"a\"", "found -1"},
      {"gpt2", "/model/vocab/a", "\"1\"", "model: vocab: token \"a\"", "found \"1\""},
      {"gpt2", "/model/vocab/a", "16777216", "token \"a\"", "below 16777216, found 16777216"},
      {"gpt2", "/model/vocab/a", "5", "model: vocab", "both have id 5"},
      {"gpt2", "/model/merges", "null", "model: merges", "a list"},
      {"gpt2", "/model/merges/0", "\"ab\"", "merges: entry 0", "found \"ab\""},
      {"gpt2", "/model/merges/0", "\"a b c\"", "merges: entry 0", "found \"a b c\""},
      {"gpt2", "/model/merges/0", "[\"a\"]", "merges: entry 0", "found [\"a\"]"},
      {"gpt2", "/model/merges/0", "[\"a\", 1]", "merges: entry 0", "found [\"a\",1]"},
      {"gpt2", "/model/merges/1", "[\"zzzz\", \"a\"]", "merges: entry 1", "\"zzzz\" is not in"},
      {"gpt2", "/model/merges/1", "[\"q\", \"z\"]", "merges: entry 1", "\"qz\" is not in"},
      {"gpt2", "/decoder", "null", "decoder", "found nothing"},
      {"gpt2", "/decoder/type", "\"Metaspace\"", "decoder: type", "\"Metaspace\""},
      {"gpt2", "/normalizer", R"({"type":"NFKC"})", "normalizer: type", "\"NFKC\""},
      {"gpt2", "/normalizer", R"({"type":"Sequence","normalizers":[{"type":"NFC"},3]})",
       "normalizer: normalizers[1]", "found 3"},
      {"gpt2", "/normalizer", R"({"type":"Sequence","normalizers":[{"type":"Lowercase"}]})",
       "normalizers[0]: type", "\"Lowercase\""},
      {"gpt2", "/pre_tokenizer", "null", "pre_tokenizer", "found nothing"},
      {"gpt2", "/pre_tokenizer/type", "\"Whitespace\"", "pre_tokenizer: type", "\"Whitespace\""},
      {"gpt2", "/pre_tokenizer/add_prefix_space", "1", "add_prefix_space", "true or false"},
      {"qwen2", "/pre_tokenizer/pretokenizers", "[]", "pre_tokenizer", "a ByteLevel step"},
      {"qwen2", "/pre_tokenizer/pretokenizers/1", R"({"type":"Digits"})", "pretokenizers[1]: type",
       "\"Digits\""},
      {"qwen2", "/pre_tokenizer/pretokenizers/0", R"({"type":"ByteLevel"})",
       "pretokenizers[1]: type", "nothing after ByteLevel"},
      {"qwen2", "/pre_tokenizer/pretokenizers/0/behavior", "\"Removed\"", "behavior",
       "\"Removed\""},
      {"qwen2", "/pre_tokenizer/pretokenizers/0/invert", "true", "invert", "true"},
      {"qwen2", "/pre_tokenizer/pretokenizers/0/pattern", R"({"String":" "})", "pattern: Regex",
       "found nothing"},
      {"qwen2", "/pre_tokenizer/pretokenizers/0/pattern/Regex", "\"(\"", "Regex", "parenthesis"},
      {"qwen2", "/pre_tokenizer/pretokenizers/0/pattern/Regex", "\"a*\"", "Regex", "match nothing"},
      {"qwen2", "/pre_tokenizer/pretokenizers/0/pattern/Regex", R"("\\bx")", "Regex",
       "not supported"},
      {"gpt2", "/post_processor/type", "\"BertProcessing\"", "post_processor: type",
       "\"BertProcessing\""},
      {"gpt2", "/post_processor/single", "[]", "single", "once"},
      {"gpt2", "/post_processor/single/0", "3", "single", "SpecialToken or Sequence"},
      {"gpt2", "/post_processor/single/0/SpecialToken/id", "\"<x>\"", "special_tokens: <x>",
       "found nothing"},
      {"gpt2", "/post_processor/special_tokens/<|endoftext|>/ids/0", "\"x\"", "ids", "token ids"},
      {"gpt2", "/post_processor/special_tokens/<|endoftext|>/ids/0", "99999", "post_processor",
       "99999"},
      {"gpt2", "/added_tokens", "{}", "added_tokens", "a list"},
      {"gpt2", "/added_tokens/0", "3", "added_tokens[0]", "found 3"},
      {"gpt2", "/added_tokens/0/content", "\"\"", "added_tokens[0]: content", "not empty"},
      {"gpt2", "/added_tokens/0/content", "7", "added_tokens[0]: content", "found 7"},
      {"gpt2", "/added_tokens/0/special", "\"yes\"", "added_tokens[0]: special", "true or false"},
      {"gpt2", "/added_tokens/0/id", "9", "added_tokens[0]: id", "found 9"},
      {"gpt2", "/added_tokens/0/id", "null", "added_tokens[0]: id", "found nothing"},
  };
  for (const char* tokenizer : {"gpt2", "qwen2"}) ASSERT_TRUE(open_text(fixture_text(tokenizer)));
  for (const Change& change : kChanges) {
    SCOPED_TRACE(std::string(change.pointer) + " = " + change.value);
    Json file = Json::parse(fixture_text(change.tokenizer));
    file[Pointer(change.pointer)] = Json::parse(change.value);
    expect_error(open_text(file.dump()), "tokenizer.json", change.where, change.reason);
  }
}

TEST(TokenizerFile, RefusesBrokenFiles) {
  const TestDirectory directory;
  expect_error(Tokenizer::open(directory.path()), "tokenizer.json", "cannot open");
  for (const char* text : {"", "{", "[]", "null", "{\"model\":\"\xff\"}"}) {
    expect_error(open_text(text), "tokenizer.json", "JSON");
  }
}

TEST(TokenizerFile, SurvivesRandomDamage) {
  std::mt19937 random(7);
  const std::string good = fixture_text("gpt2");
  for (int round = 0; round < 200; ++round) {
    std::string bad = good;
    for (int i = 0; i < 2; ++i) bad[random() % bad.size()] = "0\"{}[],:a\\"[random() % 10];
    const auto tokenizer = open_text(bad);  // an error, or a tokenizer that works
    if (!tokenizer) {
      EXPECT_EQ(tokenizer.error().message.find('\n'), std::string::npos);
      continue;
    }
    const auto tokens = tokenizer->encode("The <mask> of 1234, naïve 中\n", true);
    ASSERT_TRUE(tokens) << tokens.error().message;
    for (const int token : *tokens) EXPECT_LT(token, tokenizer->size());
  }
}

TEST(TokenizerFile, TheLastOfRepeatedMergesCounts) {
  // As in the tokenizers library, whose table of merges keeps the last entry of a pair.
  Json file = Json::parse(fixture_text("gpt2"));
  file["added_tokens"] = Json::array();
  file["post_processor"] = nullptr;
  Json& model = file["model"];
  for (auto token = model["vocab"].begin(); token != model["vocab"].end();) {
    token = token.value().get<int>() < 256 ? std::next(token) : model["vocab"].erase(token);
  }
  model["vocab"].update({{"ab", 256}, {"bc", 257}});
  model["merges"] = {"a b", "b c"};
  file["pre_tokenizer"]["add_prefix_space"] = false;
  const auto ab_first = open_text(file.dump());
  ASSERT_TRUE(ab_first) << ab_first.error().message;
  const int c = model["vocab"]["c"];
  EXPECT_EQ(ab_first->encode("abc", false).value(), (std::vector<int>{256, c}));
  model["merges"] = {"a b", "b c", "a b"};
  const int a = model["vocab"]["a"];
  EXPECT_EQ(open_text(file.dump())->encode("abc", false).value(), (std::vector<int>{a, 257}));
}

TEST(TokenizerRegex, TranslatesTheDialect) {
  const auto translated = [](std::string_view pattern) {
    return translate_regex(pattern).value_or("refused");
  };
  EXPECT_EQ(translated(R"([^\s\p{L}]+|\s+(?!\S)|\S)"),
            R"([^\p{White_Space}\p{L}]+|\p{White_Space}+(?!\P{White_Space})|\P{White_Space})");
  EXPECT_EQ(translated(R"(\p{Lu}\P{N}\p{^L}\P{^M}[\p{Han}])"),
            R"(\p{Lu}\P{N}\P{L}\p{M}[\p{sc:Han}])");
  EXPECT_EQ(translated(R"(\v\u00e9\r\n\t\[\]\\)"), R"(\x0b\x{00e9}\r\n\t\[\]\\)");
  EXPECT_EQ(translated(R"((?i:'s)(?:a)(?=b)(?<!c)(?>d)(e)a{2}b{1,3}c{1,}?)"),
            R"((?i:'s)(?:a)(?=b)(?<!c)(?>d)(e)a{2}b{1,3}c{1,}?)");
  for (const char* pattern :
       {"^a",    "a$",    R"(\w)",  R"(\b)",   R"(\h)",       R"(\R)",   R"(\X)",  R"(\K)",
        R"(\1)", R"(\A)", "\\",     "[a",      "[[:alpha:]]", "[a[b]]",  "[a&&b]", "[]a]",
        "[^]a]", "(?m)a", "(?i)a",  "(?<x>a)", "(*UTF)a",     "a{1,3}+", "a{,3}",  "a{x}",
        "a{",    R"(\p)", R"(\pL)", R"(\p{L)", R"(\u12)",     R"([\w])"}) {
    EXPECT_EQ(translated(pattern), "refused") << pattern;
    EXPECT_FALSE(Regex::compile(pattern)) << pattern;
  }
}

}  // namespace
}  // namespace kvq
