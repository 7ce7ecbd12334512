#include "kvq/report/document.h"

#include <gtest/gtest.h>

#include <functional>

#include "kvq/report/test_documents.h"

namespace kvq {
namespace {

using nlohmann::json;

json as_json(const Document& document) { return json::parse(to_json(document).dump()); }

Document round_trip(const Document& document) {
  auto result = parse_document(as_json(document), "test");
  EXPECT_TRUE(result.has_value()) << result.error().message;
  return std::move(result).value();
}

TEST(DocumentTest, RoundTrip) {
  for (const int layers : {1, 3, 80}) {
    const Document document = make_document(layers, 64);
    const Document read = round_trip(document);
    EXPECT_EQ(as_json(read), as_json(document));
    EXPECT_EQ(read.model.name, document.model.name);
    EXPECT_EQ(read.text.seed, 7U);
    EXPECT_EQ(read.window, 64);
    ASSERT_EQ(read.activations.layers.size(), static_cast<std::size_t>(layers));
    const TensorActivations& tensor = read.activations.layers.back().value;
    const TensorActivations& expected = document.activations.layers.back().value;
    EXPECT_NEAR(tensor.spectrum[5].high, expected.spectrum[5].high,
                1e-5 * expected.spectrum[5].high);
    EXPECT_NEAR(tensor.errors[1].mean_squared_error, expected.errors[1].mean_squared_error,
                1e-5 * expected.errors[1].mean_squared_error);
    EXPECT_EQ(read.weight_norms->value_spectral.size(), static_cast<std::size_t>(layers));
    EXPECT_EQ(read.groups.cells, document.groups.cells);
    EXPECT_NEAR(read.find_format("k4v2")->kl, document.find_format("k4v2")->kl, 1e-7);
  }
}

TEST(DocumentTest, WhatIsAbsentStaysAbsent) {
  Document document = make_document(2, 16);
  document.weight_norms.reset();
  document.sensitivity.reset();
  document.plans.clear();
  document.text.file.clear();
  document.sinks = 0;
  const Document read = round_trip(document);
  EXPECT_FALSE(read.weight_norms.has_value());
  EXPECT_FALSE(read.sensitivity.has_value());
  EXPECT_TRUE(read.plans.empty());
  EXPECT_EQ(read.text.file, "");
  EXPECT_EQ(read.sinks, 0);
}

struct Damage {
  std::function<void(json&)> apply;
  std::string message;
};

TEST(DocumentTest, DamageIsNamed) {
  const std::vector<Damage> damages = {
      {[](json& all) { all.erase("kvq_analysis"); },
       "test: not written by kvq analyze: there is no field \"kvq_analysis\""},
      {[](json& all) { all["kvq_analysis"] = 99; },
       "test: kvq_analysis: expected version 1, found 99"},
      {[](json& all) { all["model"].erase("layers"); },
       "test: model: layers: expected a positive integer, found nothing"},
      {[](json& all) { all["model"]["layers"] = 3U; },
       "test: weight_norms: frobenius: w_k: expected a list of 3 numbers, found [20.0,21.0]"},
      {[](json& all) { all["activations"]["layers"].erase(1); },
       "test: activations: layers: expected a list of 2 layers, found "},
      {[](json& all) { all["text"]["seed"] = -1; },
       "test: text: seed: expected an integer of at least 0, found -1"},
      {[](json& all) { all["activations"]["layers"][1]["key"]["mse"].push_back(1); },
       "test: activations: layers[1]: key: mse: expected a list of 6 numbers, found "},
      {[](json& all) { all["activations"]["layers"][0]["value"]["spectrum"]["low"][3] = "x"; },
       "test: activations: layers[0]: value: spectrum: low: expected a list of 16 numbers, found "},
      {[](json& all) { all["activations"]["layers"][0] = 5; },
       "test: activations: layers: expected a list of objects, found "},
      {[](json& all) { all["formats"][0]["kl"] = nullptr; },
       "test: formats[0]: kl: expected a number, found nothing"},
      {[](json& all) { all["widths"]["cells"][1][2] = "k9v9"; },
       "test: widths: cells[1]: no entry of \"formats\" is called \"k9v9\""},
      {[](json& all) { all["sensitivity"]["value"][1].erase(0); },
       "test: sensitivity: value[1]: row: expected a list of 3 numbers, found "},
      {[](json& all) { all["plans"][1]["layers"][0] = "k9v9"; },
       "test: plans[1]: layers: cache format 'k9v9': unknown width"},
      {[](json& all) { all["groups"]["cells"].erase(0); },
       "test: groups: cells: expected a list of 2 rows, found "},
      {[](json& all) { all["weight_norms"]["spectral"]["w_v"] = json::array({1}); },
       "test: weight_norms: spectral: w_v: expected a list of 2 numbers, found [1]"},
  };
  const json good = as_json(make_document(2, 16));
  for (const Damage& damage : damages) {
    json bad = good;
    damage.apply(bad);
    const auto result = parse_document(bad, "test");
    ASSERT_FALSE(result.has_value()) << damage.message;
    EXPECT_TRUE(result.error().message.starts_with(damage.message)) << result.error().message;
    EXPECT_EQ(result.error().message.find('\n'), std::string::npos);
  }
}

TEST(DocumentTest, EveryFieldIsAskedFor) {
  const json good = as_json(make_document(1, 16));
  for (const auto& [field, value] : good.items()) {
    json bad = good;
    bad.erase(field);
    EXPECT_EQ(parse_document(bad, "test").has_value(),
              field == "weight_norms" || field == "sensitivity")
        << field;
  }
}

}  // namespace
}  // namespace kvq
