#include "kvq/report/test_documents.h"

#include <fmt/format.h>

#include <cmath>
#include <utility>

namespace kvq {
namespace {

TensorActivations make_tensor(int layer, int head_dim, double size) {
  TensorActivations tensor;
  const double mean = size * (1 + 0.1 * layer);
  tensor.root_mean_square = {mean, 0.9 * mean, 1.2 * mean};
  for (int i = 0; i < head_dim; ++i) {
    const double value = 8 * mean / (1 + i);
    tensor.spectrum.push_back({value, 0.8 * value, 1.3 * value});
  }
  for (const int bits : {2, 3, 4, 5, 6, 8}) {
    const double relative = std::exp2(-bits);
    tensor.errors.push_back({mean * mean * relative * relative, relative});
  }
  return tensor;
}

// Adds a format unless it is there.
std::string measured(Document& document, const std::string& name, double key_bits,
                     double value_bits) {
  if (document.find_format(name) == nullptr) {
    document.formats.push_back(
        {.name = name,
         .effective_bits = (key_bits + value_bits) / 2 + 0.25,
         .cache_share = (key_bits + value_bits) / 32 + 0.05,
         .nll = 0.6,
         .kl = 2 * std::exp2(-2 * key_bits) + 0.2 * std::exp2(-2 * value_bits),
         .top1 = 1 - std::exp2(-key_bits) / 4});
  }
  return name;
}

void add_grids(Document& document) {
  document.widths.base = document.rotations.base = document.groups.base = "k4v2";
  const std::vector<int> widths = {2, 3, 4, 5, 6, 8};
  for (const int key : widths) {
    document.widths.rows.push_back(fmt::format("K{}", key));
    document.widths.columns.push_back(fmt::format("V{}", key));
    auto& row = document.widths.cells.emplace_back();
    for (const int value : widths) {
      row.push_back(measured(document, fmt::format("k{}v{}", key, value), key, value));
    }
  }
  document.rotations.rows = {"K4V2"};
  document.rotations.columns = {"none", "keys", "values", "both"};
  document.rotations.cells = {{measured(document, "k4:none,v2:none", 3.5, 1.5),
                               measured(document, "k4,v2:none", 4, 1.5),
                               measured(document, "k4:none,v2", 3.5, 2), "k4v2"}};
  for (const int key : {16, 64}) {
    document.groups.rows.push_back(fmt::format("K g{}", key));
    document.groups.columns.push_back(fmt::format("V g{}", key));
    auto& row = document.groups.cells.emplace_back();
    for (const int value : {16, 64}) {
      row.push_back(measured(document, fmt::format("k4:g{},v2:g{}", key, value), 4 + 8.0 / key,
                             2 + 8.0 / value));
    }
  }
}

void add_plans(Document& document) {
  TensorSensitivity sensitivity{
      .base = "k4v2", .windows = 2, .seed = 1, .widths = {"1", "2", "4"}, .key = {}, .value = {}};
  std::vector<std::string> layers;
  for (int layer = 0; layer < document.model.layers; ++layer) {
    sensitivity.key.push_back({0.5 / (1 + layer), 0.1 / (1 + layer), 0.01 / (1 + layer)});
    sensitivity.value.push_back({0.1, 0.02, 0.002});
    layers.push_back(layer % 2 == 0 ? "k3v2" : "k4v2");
  }
  document.sensitivity = std::move(sensitivity);
  for (const double budget : {2.25, 3.25}) {
    for (const char* method : {"norm", "sensitivity"}) {
      MeasuredFormat score = document.formats.front();
      score.name = fmt::format("{} {}", method, budget);
      score.effective_bits = budget;
      score.kl = std::exp2(-2 * budget) * (std::string(method) == "norm" ? 1 : 0.1);
      document.plans.push_back({method, budget, layers, score});
    }
  }
}

}  // namespace

Document make_document(int layers, int head_dim) {
  Document document;
  document.program = "kvq 0.0.0";
  document.command = "kvq analyze <&> --windows 2";
  document.model = {.name = "made <up> & \"quoted\"",
                    .type = "llama",
                    .layers = layers,
                    .query_heads = 8,
                    .kv_heads = 2,
                    .head_dim = head_dim,
                    .context = 2048};
  document.text = {
      .file = "text.txt", .seed = 7, .windows = 2, .tokens_per_window = 1024, .nll_16bit = 0.59};
  document.sinks = 4;
  document.window = 64;
  document.error_bits = {2, 3, 4, 5, 6, 8};
  document.activations.tokens = 2040;
  document.activations.formats = {"k2v2", "k3v3", "k4v4", "k5v5", "k6v6", "k8v8"};
  WeightNorms norms;
  for (int layer = 0; layer < layers; ++layer) {
    document.activations.layers.push_back(
        {make_tensor(layer, head_dim, 2), make_tensor(layer, head_dim, 0.5)});
    norms.key_frobenius.push_back(20 + layer);
    norms.value_frobenius.push_back(15 + 0.5 * layer);
    norms.key_spectral.push_back(4 + 0.1 * layer);
    norms.value_spectral.push_back(3 + 0.1 * layer);
  }
  document.weight_norms = std::move(norms);
  add_grids(document);
  add_plans(document);
  return document;
}

}  // namespace kvq
