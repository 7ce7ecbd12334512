#include "kvq/plan/cost_table.h"

#include <gtest/gtest.h>

#include "kvq/codec/page_format.h"

namespace kvq {
namespace {

TEST(CostTable, TensorBytesAddUpToPages) {
  for (const int head_dim : {64, 80, 96, 128, 256}) {
    for (const Bits key : packed_bits()) {
      for (const Bits value : packed_bits()) {
        LayerSpec layer;
        layer.key.bits = key;
        layer.value.bits = value;
        layer.value.group = 32;
        const auto page = PageFormat::create(layer, head_dim).value();
        const auto sum = tensor_bytes(layer.key, true, 8, head_dim).value() +
                         tensor_bytes(layer.value, false, 8, head_dim).value();
        const auto pages = static_cast<std::int64_t>(8 * page.page_bytes);
        EXPECT_GE(sum, pages) << to_string(layer);
        EXPECT_LE(sum, pages + std::int64_t{8} * 128) << to_string(layer);
        if (key != Bits::kTernary && value != Bits::kTernary && head_dim % 64 == 0) {
          EXPECT_EQ(sum, pages) << to_string(layer) << " " << head_dim;
        }
      }
    }
  }
}

TEST(CostTable, BudgetOfWholePagesIsMet) {
  const auto layer = parse_layer_spec("k4v2").value();
  const std::int64_t bytes = tensor_bytes(layer.key, true, 8, 128).value() +
                             tensor_bytes(layer.value, false, 8, 128).value();
  EXPECT_EQ(budget_bytes(3.25, 1, 8, 128), bytes);
  EXPECT_EQ(budget_bytes(2.1, 10, 5, 128), 2 * 10 * 5 * 128 * 64 * 21 / 80);
  EXPECT_FALSE(tensor_bytes(layer.key, true, 8, 120 + 1));
}

TEST(CostTable, Chosen) {
  CostTable table;
  table.tensors.resize(2);
  table.tensors[0] = {{parse_layer_spec("k4v4").value().key, 40, 1},
                      {parse_layer_spec("k2v2").value().key, 20, 3}};
  table.tensors[1] = {{parse_layer_spec("k4v3").value().value, 30, 1}};
  EXPECT_TRUE(validate(table));
  const auto layers = chosen_layers(table, {1, 0});
  ASSERT_EQ(layers.size(), 1);
  EXPECT_EQ(to_string(layers[0]), "k2v3");
  EXPECT_EQ(chosen_bytes(table, {1, 0}), 50);
  table.tensors[1][0].cost = std::numeric_limits<double>::quiet_NaN();
  EXPECT_NE(validate(table).error().message.find("values of layer 0, v3"), std::string::npos);
  table.tensors[1].clear();
  EXPECT_FALSE(validate(table));
  table.tensors.pop_back();
  EXPECT_FALSE(validate(table));
}

}  // namespace
}  // namespace kvq
