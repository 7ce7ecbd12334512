#include "kvq/plan/plan.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "kvq/base/test_directory.h"

namespace kvq {
namespace {

LayerSpec layer(const char* text) { return parse_layer_spec(text).value(); }

Plan example() {
  Plan plan;
  plan.model = {.identity = "0123456789abcdef", .layers = 3, .kv_heads = 8, .head_dim = 128};
  plan.method = "norm";
  plan.budget = 2.5;
  plan.sinks = 4;
  plan.window = 128;
  plan.layers = {layer("k4v2"), layer("k1.58:g32:channel:affine:minmax:none,v16"),
                 layer("k8:g256,v3:g16")};
  plan.effective_bits = effective_bits(plan.layers, plan.model.head_dim);
  return plan;
}

using Json = nlohmann::ordered_json;

class PlanFile : public testing::Test {
 protected:
  Result<Plan> read(const std::string& text) {
    directory_.write("plan.json", text);
    return read_plan(path());
  }
  std::filesystem::path path() const { return directory_.path() / "plan.json"; }

  // The example with one field replaced.
  Result<Plan> edited(const std::string& pointer, const Json& value) {
    Json json = Json::parse(to_json(example()));
    json[Json::json_pointer(pointer)] = value;
    return read(json.dump());
  }

  TestDirectory directory_;
};

TEST_F(PlanFile, ReadsWhatItWrote) {
  const Plan plan = example();
  ASSERT_TRUE(write_plan(plan, path()));
  const auto found = read_plan(path());
  ASSERT_TRUE(found) << found.error().message;
  EXPECT_EQ(found->model.identity, plan.model.identity);
  EXPECT_EQ(found->model.layers, 3);
  EXPECT_EQ(found->model.kv_heads, 8);
  EXPECT_EQ(found->model.head_dim, 128);
  EXPECT_EQ(found->method, "norm");
  EXPECT_EQ(found->budget, 2.5);
  EXPECT_EQ(found->sinks, 4);
  EXPECT_EQ(found->window, 128);
  EXPECT_EQ(found->layers, plan.layers);
  EXPECT_EQ(to_json(parse_plan(to_json(plan), "text").value()), to_json(plan));
  expect_error(parse_plan("{}", "text"), "text: not a plan");
  EXPECT_EQ(found->effective_bits, plan.effective_bits);
}

TEST_F(PlanFile, EveryFormatSurvives) {
  std::vector<Bits> widths = packed_bits();
  widths.push_back(Bits::k16);
  for (const Bits bits : widths) {
    for (const char* options :
         {"", ":channel", ":affine", ":minmax", ":none", ":affine:hqq", ":g16:channel:affine"}) {
      const std::string width(name(bits));
      const std::string tail = bits == Bits::k16 ? "" : options;
      Plan plan = example();
      plan.layers[0] = layer(fmt::format("k{0}{1},v{0}{1}", width, tail).c_str());
      plan.effective_bits = effective_bits(plan.layers, 128);
      const auto found = read(to_json(plan));
      ASSERT_TRUE(found) << found.error().message;
      EXPECT_EQ(found->layers, plan.layers);
    }
  }
}

TEST_F(PlanFile, WithoutIdentityOrBudget) {
  Plan plan = example();
  plan.model.identity.clear();
  plan.budget = 0;
  const auto found = read(to_json(plan));
  ASSERT_TRUE(found) << found.error().message;
  EXPECT_EQ(found->model.identity, "");
  EXPECT_EQ(found->budget, 0);
}

TEST_F(PlanFile, RefusesNonsense) {
  const std::string file = path().string();
  expect_error(edited("/kvq_plan", 2), file + ": kvq_plan: expected 1", "found 2");
  expect_error(read("{}"), file + ": not a plan: expected the field \"kvq_plan\"");
  expect_error(read("[1]"), file + ": expected a JSON object");
  expect_error(read("{"), file + ": not valid JSON");
  expect_error(edited("/layers/1/key/bits", 7),
               file + ": layers[1]: key: bits: expected 1, 1.58, 2", "or 16, found 7");
  expect_error(edited("/layers/1/key/bits", "4"), "layers[1]: key: bits: expected", "found \"4\"");
  expect_error(
      edited("/layers/0/value/group", 48),
      file + ": layers[0]: group of the values: expected 16, 32, 64, 128 or 256, found 48");
  expect_error(edited("/layers/0/value/group", -64),
               "layers[0]: value: group: expected a positive");
  expect_error(edited("/layers/2/key/axis", "row"),
               R"(layers[2]: key: axis: expected "token" or "channel", found "row")");
  expect_error(edited("/layers/2/key/fit", nullptr), "layers[2]: key: fit: expected",
               "found nothing");
  expect_error(edited("/layers/2/key/colour", 1), "layers[2]: key: \"colour\": unknown field");
  expect_error(edited("/layers/1/value/group", 64), "layers[1]: value: \"group\": unknown field");
  expect_error(edited("/layers/2", 5), "layers[2]: expected an object, found 5");
  expect_error(edited("/layers", Json::array()), "layers: expected 3 as the model has, found 0");
  expect_error(edited("/model/layers", 4), "layers: expected 4 as the model has, found 3");
  expect_error(edited("/model/head_dim", 100), "model: head_dim: expected a multiple of 16");
  expect_error(edited("/model/kv_heads", 0), "model: kv_heads: expected a positive integer");
  expect_error(edited("/model/identity", "abc"), "model: identity: expected 16 hexadecimal digits");
  expect_error(edited("/effective_bits", 2.5), "effective_bits: expected ",
               "what the layers take, found 2.5");
  expect_error(edited("/layers/0/key/bits", 3), "effective_bits: expected");
  expect_error(edited("/window", 100), "window: expected a multiple of 64 tokens, found 100");
  expect_error(edited("/sinks", -1), "sinks: expected an integer from 0 on, found -1");
  expect_error(edited("/budget", -2), "budget: expected a positive number, found -2");
  expect_error(edited("/method", ""), "method: expected a name");
  expect_error(read_plan(directory_.path() / "absent.json"), "absent.json");
}

TEST_F(PlanFile, RefusesAnotherModel) {
  const Plan plan = example();
  EXPECT_TRUE(check_model(plan, plan.model, "plan.json"));
  PlanModel other = plan.model;
  other.layers = 4;
  expect_error(check_model(plan, other, "plan.json"),
               "plan.json: model: layers: the plan is for another model: expected 4, found 3");
  other = plan.model;
  other.kv_heads = 2;
  expect_error(check_model(plan, other, "plan.json"), "kv_heads", "expected 2, found 8");
  other = plan.model;
  other.head_dim = 64;
  expect_error(check_model(plan, other, "plan.json"), "head_dim", "expected 64, found 128");
  other = plan.model;
  other.identity = "ffffffffffffffff";
  expect_error(check_model(plan, other, "plan.json"), "identity", "expected ffffffffffffffff");
  Plan open = plan;
  open.model.identity.clear();
  EXPECT_TRUE(check_model(open, other, "plan.json"));
}

}  // namespace
}  // namespace kvq
