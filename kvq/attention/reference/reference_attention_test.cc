#include "kvq/attention/reference/reference_attention.h"

#include <gtest/gtest.h>

#include <cmath>

#include "kvq/attention/test_view.h"

namespace kvq {
namespace {

TEST(ReferenceAttention, OneTokenReturnsItsValue) {
  TestView test({.spec = {}, .head_dim = 16, .length = 1});
  const std::vector<float> query = random_normal(2 * 16, 7);
  const LayerView view = test.view();
  const AttentionShape shape{.query_heads = 2, .kv_heads = 1, .head_dim = 16, .scale = 0.25F};
  const std::vector<double> output =
      reference_attention(shape, {&view, query.data(), nullptr, 1}, false);
  for (int i = 0; i < 32; ++i) EXPECT_DOUBLE_EQ(output[i], to_float(view.sinks.value[i % 16]));
}

TEST(ReferenceAttention, TwoTokensByHand) {
  Half key[2][16] = {};
  Half value[2][16] = {};
  key[1][3] = to_half(2.0F);
  value[0][5] = to_half(1.0F);
  value[1][5] = to_half(3.0F);
  const PageFormat format = PageFormat::create({}, 16).value();
  LayerView view;
  view.format = &format;
  view.kv_heads = 1;
  view.length = 2;
  view.window = 64;
  view.tail = {.key = key[0], .value = value[0], .head_stride = 32, .first = 0, .count = 2};
  float query[2][16] = {};
  query[0][3] = query[1][3] = 1.5F;
  const AttentionShape shape{.query_heads = 1, .kv_heads = 1, .head_dim = 16, .scale = 0.5F};
  const std::vector<double> output =
      reference_attention(shape, {&view, query[0], nullptr, 2}, false);
  EXPECT_DOUBLE_EQ(output[5], 1.0);  // the first token sees itself alone
  const double weight = std::exp(1.5) / (1 + std::exp(1.5));
  EXPECT_NEAR(output[16 + 5], 1 + 2 * weight, 1e-15);
}

// A token that is read packed differs from the same token read exactly.
TEST(ReferenceAttention, BoundaryDecidesBetweenPackedAndExact) {
  const LayerSpec spec = parse_layer_spec("k2v2").value();
  TestView test({.spec = spec, .sinks = 0, .window = 64, .length = 129, .chunk = 129});
  const std::vector<float> query = random_normal(std::size_t{129} * 64, 7);
  const AttentionShape shape{.query_heads = 1, .kv_heads = 1, .head_dim = 64, .scale = 0.125F};
  const LayerView view = test.view();
  const AttentionItem item{&view, query.data(), nullptr, 129};
  const std::vector<double> packed = reference_attention(shape, item, false);
  const std::vector<double> exact = reference_attention(shape, item, true);
  for (int i = 0; i < 128 * 64; ++i) ASSERT_EQ(packed[i], exact[i]) << i;
  double difference = 0;
  for (int i = 128 * 64; i < 129 * 64; ++i) difference += std::abs(packed[i] - exact[i]);
  EXPECT_GT(difference, 0.1);
}

}  // namespace
}  // namespace kvq
