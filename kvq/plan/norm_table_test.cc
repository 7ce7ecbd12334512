#include "kvq/plan/norm_table.h"

#include <gtest/gtest.h>

#include "kvq/base/test_directory.h"

namespace kvq {
namespace {

class NormFile : public testing::Test {
 protected:
  Result<NormTable> read(const std::string& text) {
    directory_.write("norms.json", text);
    return read_norms(directory_.path() / "norms.json");
  }

  TestDirectory directory_;
};

TEST_F(NormFile, ReadsWhatItWrote) {
  NormTable table;
  table.label = "a model";
  table.norm = "spectral";
  table.model = {.identity = "0123456789abcdef", .layers = 2, .kv_heads = 2, .head_dim = 64};
  table.keys = {1.0 / 3, 2};
  table.values = {3, 4e-9};
  table.key_heads = {{1, 2}, {3, 4}};
  table.value_heads = {{5, 6}, {7, 8}};
  const auto found = read(to_json(table));
  ASSERT_TRUE(found) << found.error().message;
  EXPECT_EQ(found->label, "a model");
  EXPECT_EQ(found->norm, "spectral");
  EXPECT_EQ(found->model.identity, table.model.identity);
  EXPECT_EQ(found->model.layers, 2);
  EXPECT_EQ(found->model.kv_heads, 2);
  EXPECT_EQ(found->model.head_dim, 64);
  EXPECT_EQ(found->keys, table.keys);
  EXPECT_EQ(found->values, table.values);
  EXPECT_EQ(found->key_heads, table.key_heads);
  EXPECT_EQ(found->value_heads, table.value_heads);
}

TEST_F(NormFile, ListsAreEnough) {
  const auto found = read(R"({"w_k": [1, 2, 3], "w_v": [4, 5, 6], "made_by": "someone"})");
  ASSERT_TRUE(found) << found.error().message;
  EXPECT_EQ(found->model.layers, 3);
  EXPECT_EQ(found->model.kv_heads, 0);
  EXPECT_EQ(found->norm, "");
  EXPECT_EQ(found->values, (std::vector<double>{4, 5, 6}));
  const auto again = read(to_json(*found));
  ASSERT_TRUE(again) << again.error().message;
  EXPECT_EQ(again->keys, found->keys);
}

TEST_F(NormFile, RefusesNonsense) {
  const std::string file = (directory_.path() / "norms.json").string();
  expect_error(read(R"({"w_k": [1]})"), file + ": w_v: expected a list, found nothing");
  expect_error(read(R"({"w_k": [], "w_v": []})"), "w_k: expected a list of norms, found []");
  expect_error(read(R"({"w_k": [1, 0], "w_v": [1, 1]})"),
               "w_k[1]: expected a positive number, found 0");
  expect_error(read(R"({"w_k": [1, 1], "w_v": [null, 1]})"), "w_v[0]: expected a positive number");
  expect_error(read(R"({"w_k": [1, 1], "w_v": [1]})"), "w_v: expected 2 norms as w_k has, found 1");
  expect_error(read(R"({"w_k": [1], "w_v": [1], "kv_heads": 2})"), "head_dim: expected a positive");
  expect_error(read(R"({"w_k": [1], "w_v": [1], "kv_heads": 2, "head_dim": 64, "heads_k": [[1]]})"),
               "heads_k[0]: expected 2 norms, one a kv head, found 1");
  expect_error(
      read(R"({"w_k": [1], "w_v": [1], "kv_heads": 1, "head_dim": 64, "heads_v": [[1], [2]]})"),
      "heads_v: expected 1 layers");
}

TEST_F(NormFile, CostsAreByteExact) {
  NormTable norms;
  norms.model = {.identity = "", .layers = 1, .kv_heads = 8, .head_dim = 128};
  norms.keys = {3};
  norms.values = {2};
  const LayerSpec base = parse_layer_spec("k4:g32:affine,v2:channel:none").value();
  const CostTable widths = width_costs(norms, base, {Bits::k1, Bits::k4}).value();
  ASSERT_EQ(widths.tensors.size(), 2);
  EXPECT_EQ(to_string(widths.tensors[0][0].spec, true), "k1:g32:affine");
  EXPECT_EQ(to_string(widths.tensors[1][1].spec, false), "v4:channel:none");
  EXPECT_DOUBLE_EQ(widths.tensors[0][0].cost, 9.0 / 4);
  EXPECT_DOUBLE_EQ(widths.tensors[1][1].cost, 4.0 / 256);
  // 64 tokens of 8 heads of 128 channels: a code of 4 bits, and 16 bits for each 64 tokens.
  EXPECT_EQ(widths.tensors[1][1].bytes, 64 * 8 * 128 * (4 * 64 + 16) / 64 / 8);
  const CostTable groups = group_costs(norms, {base}, {16, 256}).value();
  EXPECT_EQ(to_string(groups.tensors[0][1].spec, true), "k4:g256:affine");
  EXPECT_DOUBLE_EQ(groups.tensors[0][1].cost, 3.0 * 256);
  norms.model.head_dim = 0;
  EXPECT_FALSE(width_costs(norms, base, {Bits::k1}));
}

}  // namespace
}  // namespace kvq
