#include "kvq/eval/json_lines.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>

#include "kvq/base/file.h"

namespace kvq {
namespace {

class JsonLines : public testing::Test {
 protected:
  void SetUp() override {
    path_ = std::filesystem::temp_directory_path() / fmt::format("kvq-{}.jsonl", ::getpid());
  }
  void TearDown() override { std::filesystem::remove(path_); }

  std::string error_of(std::string_view text) {
    EXPECT_TRUE(write_file(path_, text));
    const auto lines = read_json_lines(path_);
    return lines ? "none" : lines.error().message.substr(path_.string().size());
  }

  std::filesystem::path path_;
};

TEST_F(JsonLines, BlankLinesCountButHoldNothing) {
  ASSERT_TRUE(write_file(path_, "{\"a\": \"x\"}\r\n\n  \n{\"a\": \"y\"}\n{\"a\": \"z\"}"));
  const auto lines = read_json_lines(path_);
  ASSERT_TRUE(lines) << lines.error().message;
  ASSERT_EQ(lines->size(), 3U);
  EXPECT_EQ((*lines)[1].number, 4);
  EXPECT_EQ(string_field(path_, (*lines)[1], "a").value(), "y");
  EXPECT_EQ(read_json_lines(path_, 2)->size(), 2U);
}

TEST_F(JsonLines, ErrorsNameTheLine) {
  EXPECT_EQ(error_of("{}\n{\"a\": 1"), ":2: expected a JSON object");
  EXPECT_EQ(error_of("[1]"), ":1: expected a JSON object");
  EXPECT_EQ(error_of("\n\n"), ": expected one JSON object a line, found none");
}

TEST_F(JsonLines, FieldsAreTexts) {
  for (const char* text : {"{}", "{\"prompt\": 3}", "{\"prompt\": \"\"}"}) {
    ASSERT_TRUE(write_file(path_, text));
    const auto lines = read_json_lines(path_);
    const auto field = string_field(path_, lines->front(), "prompt");
    ASSERT_FALSE(field);
    EXPECT_EQ(field.error().message,
              path_.string() + ":1: expected a string \"prompt\" that is not empty");
  }
}

}  // namespace
}  // namespace kvq
