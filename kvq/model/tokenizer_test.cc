#include "kvq/model/tokenizer.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "kvq/base/file.h"

namespace kvq {
namespace {

using Json = nlohmann::json;

constexpr const char* kDemoModel = KVQ_SOURCE_DIR "/models/demo-llama";

Json read_json(const std::filesystem::path& path) { return Json::parse(read_file(path).value()); }

TEST(Tokenizer, AgreesWithTheDemoModelsGoldenIds) {
  const auto tokenizer = Tokenizer::open(kDemoModel);
  ASSERT_TRUE(tokenizer) << tokenizer.error().message;
  EXPECT_EQ(tokenizer->size(), 8192);
  const Json golden = read_json(std::string(kDemoModel) + "/golden.json");
  ASSERT_GT(golden.size(), 0U);
  for (const Json& item : golden) {
    const std::string text = item["text"];
    const auto tokens = tokenizer->encode(text, true);
    ASSERT_TRUE(tokens) << tokens.error().message;
    EXPECT_EQ(*tokens, item["ids"].get<std::vector<int>>()) << text;
    EXPECT_EQ(tokenizer->decode(*tokens), text);
    EXPECT_EQ(tokenizer->decode(*tokens, true), "<|begin_of_text|>" + text);
    EXPECT_EQ(tokenizer->encode(text, false)->size() + 1, tokens->size());
  }
}

}  // namespace
}  // namespace kvq
