#include "kvq/runtime/generate.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <utility>

#include "kvq/runtime/test_models.h"

namespace kvq {
namespace {

class GenerateTest : public testing::Test {
 protected:
  Result<Generation> run(const std::vector<std::vector<int>>& prompts,
                         const GenerateOptions& options) {
    return generate(engine_, prompts, make_spec(engine_), PagePool::create(0), options);
  }

  Engine engine_ = load_engine(tiny_model("llama3.1-tiny"));
};

TEST_F(GenerateTest, BatchContinuesEachPromptAsAlone) {
  GenerateOptions options;
  options.max_new_tokens = 12;
  options.ignore_stop_tokens = true;
  for (const float temperature : {0.0F, 0.8F}) {
    options.sampling = {.temperature = temperature, .top_k = 20, .top_p = 0.9F, .seed = 5};
    std::vector<std::vector<int>> prompts;
    for (const int length : {3, 100, 17}) prompts.push_back(random_tokens(length, 128, 8));
    const auto together = run(prompts, options);
    ASSERT_TRUE(together) << together.error().message;
    for (std::size_t i = 0; i < prompts.size(); ++i) {
      GenerateOptions alone = options;
      alone.sampling.seed += i;
      EXPECT_EQ(run({prompts[i]}, alone)->tokens[0], together->tokens[i]) << i;
      EXPECT_EQ(together->tokens[i].size(), 12U);
    }
    EXPECT_EQ(together->prefill_tokens, 120);
    EXPECT_EQ(together->decode_tokens, 33);
    EXPECT_EQ(together->cached_tokens, 153);
    EXPECT_GT(together->bytes.exact, 0);
  }
}

TEST_F(GenerateTest, StopTokenEndsItsPromptAndIsLeftOut) {
  const std::vector<int> prompt = random_tokens(20, 128, 9);
  GenerateOptions options;
  options.max_new_tokens = 400;
  options.sampling = {.temperature = 2, .seed = 1};
  const auto stopped = run({prompt}, options);
  ASSERT_TRUE(stopped);
  options.ignore_stop_tokens = true;
  const auto free_running = run({prompt}, options);
  ASSERT_TRUE(free_running);
  const std::vector<int>& all = free_running->tokens[0];
  ASSERT_EQ(all.size(), 400U);
  const auto is_stop = [](int token) { return token == 1 || token == 2; };
  const auto stop = std::ranges::find_if(all, is_stop);
  ASSERT_NE(stop, all.end()) << "choose a seed that meets a stop token";
  EXPECT_EQ(stopped->tokens[0], std::vector<int>(all.begin(), stop));
}

TEST_F(GenerateTest, StopsAtTheContext) {
  GenerateOptions options;
  options.max_new_tokens = 1000;
  options.ignore_stop_tokens = true;
  const auto result = run({random_tokens(500, 128, 10)}, options);
  ASSERT_TRUE(result) << result.error().message;
  // 500 prompt tokens and 12 new ones fill the context of 512; the last is sampled behind it.
  EXPECT_EQ(result->tokens[0].size(), 13U);
  EXPECT_EQ(result->cached_tokens, 512);
}

TEST_F(GenerateTest, WrongPromptsAreErrors) {
  EXPECT_EQ(run({random_tokens(513, 128, 11)}, {}).error().message,
            "prompt 0: 513 tokens exceed the model's context of 512");
  EXPECT_EQ(run({{1}, {}}, {}).error().message, "prompt 1 is empty");
  EXPECT_EQ(run({{128}}, {}).error().message, "token id 128: expected 0 to 127");
  GenerateOptions none;
  none.max_new_tokens = 0;
  EXPECT_FALSE(run({{1}}, none));
}

TEST_F(GenerateTest, InterruptionKeepsThePartialResult) {
  std::atomic<bool> interrupted{false};
  std::vector<std::pair<int, int>> seen;
  GenerateOptions options;
  options.ignore_stop_tokens = true;
  options.interrupted = &interrupted;
  options.on_token = [&](int prompt, int token) {
    seen.emplace_back(prompt, token);
    if (seen.size() >= 10) interrupted = true;
  };
  const auto result = run({{5, 6}, {7}}, options);
  ASSERT_TRUE(result);
  EXPECT_EQ(result->tokens[0].size(), 5U);
  EXPECT_EQ(result->tokens[1].size(), 5U);
  ASSERT_EQ(seen.size(), 10U);
  for (std::size_t i = 0; i < seen.size(); ++i) {
    EXPECT_EQ(seen[i].first, static_cast<int>(i % 2));
    EXPECT_EQ(seen[i].second, result->tokens[i % 2][i / 2]);
  }
}

}  // namespace
}  // namespace kvq
