#include "kvq/model/utf8.h"

#include <gtest/gtest.h>

#include <random>
#include <string>
#include <utility>
#include <vector>

#include "kvq/model/tokenizer.h"

namespace kvq {
namespace {

std::string decode_whole(std::string_view bytes) {
  Utf8Stream stream;
  std::string shown = stream.push(bytes);
  return shown + stream.finish();
}

TEST(Utf8Stream, ReplacesAsPythonDoes) {
  // From bytes.decode("utf-8", errors="replace"), "?" for U+FFFD.
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"plain", "plain"},
      {"\xC3\xA9", "\xC3\xA9"},
      {"\x80", "?"},
      {"\xC0\x80", "??"},
      {"\xC1\xBF", "??"},
      {"\xE2\x82\x41", "?A"},
      {"\xE2\x82\xAC", "\xE2\x82\xAC"},
      {"\xE0\x80\x80", "???"},
      {"\xE0\xA0", "?"},
      {"\xED\xA0\x80", "???"},
      {"\xED\x9F\xBF", "\xED\x9F\xBF"},
      {"\xF0\x80\x80\x80", "????"},
      {"\xF0\x9F\x98", "?"},
      {"\xF0\x9F\x98\x80", "\xF0\x9F\x98\x80"},
      {"\xF0\x9F\x98\xF0\x9F\x98\x80", "?\xF0\x9F\x98\x80"},
      {"\xF4\x8F\xBF\xBF", "\xF4\x8F\xBF\xBF"},
      {"\xF4\x90\x80\x80", "????"},
      {"\xF5\xFF", "??"},
      {"a\xE2", "a?"},
      {std::string("\0\xC2", 2), std::string("\0?", 2)},
  };
  for (auto [bytes, expected] : cases) {
    for (std::size_t at = expected.find('?'); at != expected.npos; at = expected.find('?', at)) {
      expected.replace(at, 1, "\xEF\xBF\xBD");
    }
    EXPECT_EQ(decode_whole(bytes), expected);
    EXPECT_EQ(first_invalid_utf8(bytes) == bytes.size(), bytes == expected);
  }
}

TEST(Utf8Stream, ShowsCharactersAsSoonAsTheyAreWhole) {
  Utf8Stream stream;
  EXPECT_EQ(stream.push("a\xF0\x9F"), "a");
  EXPECT_EQ(stream.push("\x98"), "");
  EXPECT_EQ(stream.push("\x80z"), "\xF0\x9F\x98\x80z");
  EXPECT_EQ(stream.push("\xE2\x82"), "");
  EXPECT_EQ(stream.push("b"),
            "\xEF\xBF\xBD"
            "b");
  EXPECT_EQ(stream.finish(), "");
  EXPECT_EQ(stream.push("\xE2"), "");
  EXPECT_EQ(stream.finish(), "\xEF\xBF\xBD");
  EXPECT_EQ(stream.finish(), "");
}

TEST(Utf8Stream, EverySplitGivesTheSame) {
  std::mt19937 random(1);
  // Bytes that meet often in characters and in what breaks them.
  constexpr std::string_view kBytes =
      "aZ\x80\xBF\x9F\xA0\x90\x8F\xC2\xC3\xE0\xE2\xED\xEF\xF0\xF4\xFF";
  for (int round = 0; round < 3000; ++round) {
    std::string bytes;
    for (std::size_t i = random() % 24; i > 0; --i) bytes += kBytes[random() % kBytes.size()];
    const std::string expected = decode_whole(bytes);
    EXPECT_EQ(first_invalid_utf8(expected), expected.size());
    Utf8Stream stream;
    std::string shown;
    for (std::size_t at = 0; at < bytes.size();) {
      const std::size_t size = random() % 4;
      shown += stream.push(std::string_view(bytes).substr(at, size));
      EXPECT_EQ(first_invalid_utf8(shown), shown.size());
      at += size;
    }
    shown += stream.finish();
    ASSERT_EQ(shown, expected);
  }
}

TEST(Utf8, CodePointsRoundTrip) {
  for (char32_t c = 0; c < 0x110000; ++c) {
    if (c >= 0xD800 && c < 0xE000) continue;
    std::string text;
    append_utf8(text, c);
    const Utf8Step step = next_utf8(text);
    ASSERT_EQ(step.kind, Utf8Kind::kCharacter);
    ASSERT_EQ(step.size, text.size());
    ASSERT_EQ(code_point(text), c);
  }
}

}  // namespace
}  // namespace kvq
