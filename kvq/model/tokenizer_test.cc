#include "kvq/model/tokenizer.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <nlohmann/json.hpp>
#include <thread>

#include "kvq/base/file.h"
#include "kvq/base/test_directory.h"
#include "kvq/model/utf8.h"

namespace kvq {
namespace {

using Json = nlohmann::json;

const std::filesystem::path kDemoModel = KVQ_SOURCE_DIR "/models/demo-llama";
const std::filesystem::path kFixtures = KVQ_SOURCE_DIR "/tests/fixtures/tokenizer";

Json read_json(const std::filesystem::path& path) { return Json::parse(read_file(path).value()); }

// As tests/fixtures/tokenizer/make_fixtures.py computes it.
std::string checksum_of(const std::vector<int>& tokens, std::uint64_t value = 0xCBF29CE484222325U) {
  for (const int token : tokens) {
    value = (value ^ static_cast<std::uint64_t>(token)) * 0x100000001B3U;
  }
  return fmt::format("{:016x}", value);
}

// What a reader sees of a token sequence's bytes.
std::string shown_text(const Tokenizer& tokenizer, const std::vector<int>& tokens, bool special) {
  Utf8Stream stream;
  std::string text = stream.push(tokenizer.decode(tokens, special));
  return text + stream.finish();
}

class TokenizerGolden : public testing::TestWithParam<const char*> {
 protected:
  static std::string tokenizer_name() { return GetParam(); }
  static Tokenizer open() {
    const bool demo = tokenizer_name() == "demo";
    return Tokenizer::open(demo ? kDemoModel : kFixtures / tokenizer_name()).value();
  }
};

INSTANTIATE_TEST_SUITE_P(Styles, TokenizerGolden,
                         testing::Values("demo", "llama3", "qwen2", "gpt2"),
                         [](const auto& name_info) { return std::string(name_info.param); });

TEST_P(TokenizerGolden, EncodesAndDecodesTexts) {
  const Tokenizer tokenizer = open();
  const Json golden = read_json(kFixtures / (tokenizer_name() + ".golden.json"));
  ASSERT_GT(golden["texts"].size(), 100U);
  for (const Json& item : golden["texts"]) {
    SCOPED_TRACE(item["text"].dump());
    const std::string text = item["text"];
    const auto plain = tokenizer.encode(text, false);
    ASSERT_TRUE(plain) << plain.error().message;
    EXPECT_EQ(*plain, item["ids"].get<std::vector<int>>());
    const auto special = tokenizer.encode(text, true);
    ASSERT_TRUE(special) << special.error().message;
    EXPECT_EQ(*special, item["special_ids"].get<std::vector<int>>());
    EXPECT_EQ(shown_text(tokenizer, *special, false), item["decoded"].get<std::string>());
    EXPECT_EQ(shown_text(tokenizer, *special, true), item["decoded_special"].get<std::string>());
  }
}

TEST_P(TokenizerGolden, DecodesAnySequence) {
  const Tokenizer tokenizer = open();
  const Json golden = read_json(kFixtures / (tokenizer_name() + ".golden.json"));
  ASSERT_GT(golden["sequences"].size(), 10U);
  for (const Json& item : golden["sequences"]) {
    const auto tokens = item["ids"].get<std::vector<int>>();
    EXPECT_EQ(shown_text(tokenizer, tokens, true), item["decoded"].get<std::string>());
    // Token by token through a stream: the same text.
    Utf8Stream stream;
    std::string streamed;
    for (const int token : tokens) streamed += stream.push(tokenizer.decode({&token, 1}, true));
    EXPECT_EQ(streamed + stream.finish(), item["decoded"].get<std::string>());
  }
}

void expect_characters(const std::string& tokenizer_name) {
  SCOPED_TRACE(tokenizer_name);
  const Tokenizer tokenizer = Tokenizer::open(kFixtures / tokenizer_name).value();
  const Json golden = read_json(kFixtures / "characters.golden.json");
  std::vector<std::string> blocks(golden[tokenizer_name].size());
  ASSERT_EQ(blocks.size(), 0x110000U / 4096);
  for (const Json& range : golden["assigned"]) {
    for (char32_t c = range[0]; c <= range[1].get<char32_t>(); ++c) {
      std::string character;
      append_utf8(character, c);
      blocks[c / 4096] += fmt::format("{0}a{0}1 {0}\n{0} e{0}.", character);
    }
  }
  for (std::size_t i = 0; i < blocks.size(); ++i) {
    const auto tokens = tokenizer.encode(blocks[i], true);
    ASSERT_TRUE(tokens) << tokens.error().message;
    EXPECT_EQ(checksum_of(*tokens), golden[tokenizer_name][i].get<std::string>())
        << fmt::format("U+{:04X} .. U+{:04X}", i * 4096, i * 4096 + 4095);
  }
}

TEST(Tokenizer, KnowsEveryCharacter) { expect_characters("llama3"); }

TEST(Tokenizer, ComposesEveryCharacter) { expect_characters("qwen2"); }

std::vector<std::string_view> lines_of(std::string_view text) {
  std::vector<std::string_view> lines;
  for (std::size_t end = text.find('\n'); end != text.npos; end = text.find('\n')) {
    lines.push_back(text.substr(0, end));
    text.remove_prefix(end + 1);
  }
  lines.push_back(text);
  return lines;
}

TEST_P(TokenizerGolden, EncodesCorpora) {
  const char* shared = std::getenv("KVQ_SHARED");
  if (shared == nullptr || *shared == 0) GTEST_SKIP() << "KVQ_SHARED is not set: no corpora";
  const Tokenizer tokenizer = open();
  const Json golden = read_json(kFixtures / "corpora.golden.json")[tokenizer_name()];
  ASSERT_EQ(golden.size(), 2U);
  for (const auto& [file, expected] : golden.items()) {
    SCOPED_TRACE(file);
    const std::string text =
        read_file(std::filesystem::path(shared) / "data" / "text" / file).value();
    const auto whole = tokenizer.encode(text, true);
    ASSERT_TRUE(whole) << whole.error().message;
    EXPECT_EQ(whole->size(), expected["whole_tokens"].get<std::size_t>());
    EXPECT_EQ(checksum_of(*whole), expected["whole"].get<std::string>());
    const auto lines = lines_of(text);
    std::size_t count = 0;
    for (std::size_t block = 0; block < expected["blocks"].size(); ++block) {
      std::vector<int> tokens;
      for (std::size_t i = 100 * block; i < std::min(100 * block + 100, lines.size()); ++i) {
        const auto line = tokenizer.encode(lines[i], true);
        ASSERT_TRUE(line) << line.error().message;
        tokens.insert(tokens.end(), line->begin(), line->end());
      }
      count += tokens.size();
      EXPECT_EQ(checksum_of(tokens), expected["blocks"][block].get<std::string>())
          << "lines from " << 100 * block;
    }
    EXPECT_EQ(count, expected["tokens"].get<std::size_t>());
  }
}

TEST(Tokenizer, AgreesWithTheDemoModelsGoldenIds) {
  const auto tokenizer = Tokenizer::open(kDemoModel);
  ASSERT_TRUE(tokenizer) << tokenizer.error().message;
  EXPECT_EQ(tokenizer->size(), 8192);
  const Json golden = read_json(kDemoModel / "golden.json");
  ASSERT_GT(golden.size(), 0U);
  for (const Json& item : golden) {
    const std::string text = item["text"];
    const auto tokens = tokenizer->encode(text, true);
    ASSERT_TRUE(tokens) << tokens.error().message;
    EXPECT_EQ(*tokens, item["ids"].get<std::vector<int>>()) << text;
    EXPECT_EQ(tokenizer->decode(*tokens), text);
    EXPECT_EQ(tokenizer->decode(*tokens, true), "<|begin_of_text|>" + text);
  }
}

TEST(Tokenizer, RefusesInvalidText) {
  const Tokenizer tokenizer = Tokenizer::open(kFixtures / "qwen2").value();
  expect_error(tokenizer.encode("ab\xED\xA0\x80", true), "UTF-8", "byte 2");
  expect_error(tokenizer.encode("\xFF", true), "UTF-8", "byte 0");
  expect_error(tokenizer.encode("abc\xE2\x82", true), "UTF-8", "byte 3");
}

TEST(Tokenizer, IgnoresUnknownIdsWhenDecoding) {
  const Tokenizer tokenizer = Tokenizer::open(kDemoModel).value();
  const int exclamation = 2;
  const std::vector<int> tokens = {-1, exclamation, tokenizer.size(), 2147483647, exclamation};
  EXPECT_EQ(tokenizer.decode(tokens), "!!");
}

TEST(Tokenizer, EncodesLongRuns) {
  const Tokenizer tokenizer = Tokenizer::open(kFixtures / "llama3").value();
  for (const std::string piece : {" ", "a", "\n", "1", "!", "é", " a", "\xCC\x81"}) {
    std::string text;
    for (int i = 0; i < 50000; ++i) text += piece;
    const auto tokens = tokenizer.encode(text, false);
    ASSERT_TRUE(tokens) << tokens.error().message;
    EXPECT_EQ(tokenizer.decode(*tokens), text);
  }
}

TEST(Tokenizer, ServesThreadsAtOnce) {
  const Tokenizer tokenizer = Tokenizer::open(kFixtures / "qwen2").value();
  const Json texts = read_json(kFixtures / "qwen2.golden.json")["texts"];
  std::vector<int> wrong(4, 0);
  {
    std::vector<std::jthread> threads;
    for (int& count : wrong) {
      threads.emplace_back([&tokenizer, &texts, &count] {
        for (const Json& item : texts) {
          const auto tokens = tokenizer.encode(item["text"].get<std::string>(), false);
          if (tokens != item["ids"].get<std::vector<int>>()) ++count;
        }
      });
    }
  }
  EXPECT_EQ(wrong, std::vector<int>(4, 0));
}

}  // namespace
}  // namespace kvq
