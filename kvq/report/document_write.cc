// A Document as JSON. Numbers have six significant digits: what was measured is not known better.
#include <algorithm>
#include <cstdlib>

#include "kvq/report/document.h"
#include "kvq/report/document_format.h"

namespace kvq {
namespace {

using OrderedJson = nlohmann::ordered_json;

double rounded(double number) {
  return std::strtod(fmt::format("{:.6g}", number).c_str(), nullptr);
}

OrderedJson numbers(const std::vector<double>& values) {
  OrderedJson list = OrderedJson::array();
  for (const double value : values) list.push_back(rounded(value));
  return list;
}

// One field of every element, as a list.
template <typename Element, typename Field>
OrderedJson column(const std::vector<Element>& elements, Field Element::*field) {
  std::vector<double> values;
  values.reserve(elements.size());
  for (const Element& element : elements) values.push_back(element.*field);
  return numbers(values);
}

OrderedJson tensor_json(const TensorActivations& tensor) {
  const HeadRange& size = tensor.root_mean_square;
  return {{"rms", {rounded(size.mean), rounded(size.low), rounded(size.high)}},
          {"spectrum",
           {{"mean", column(tensor.spectrum, &HeadRange::mean)},
            {"low", column(tensor.spectrum, &HeadRange::low)},
            {"high", column(tensor.spectrum, &HeadRange::high)}}},
          {"mse", column(tensor.errors, &StoredError::mean_squared_error)},
          {"relative_error", column(tensor.errors, &StoredError::relative_error)}};
}

OrderedJson activations_json(const Document& document) {
  OrderedJson layers = OrderedJson::array();
  for (const LayerActivations& layer : document.activations.layers) {
    layers.push_back({{"key", tensor_json(layer.key)}, {"value", tensor_json(layer.value)}});
  }
  return {{"tokens", document.activations.tokens},
          {"error_formats", document.activations.formats},
          {"error_bits", numbers(document.error_bits)},
          {"layers", std::move(layers)}};
}

OrderedJson format_json(const MeasuredFormat& format) {
  return {{"name", format.name},
          {"effective_bits", rounded(format.effective_bits)},
          {"cache_share", rounded(format.cache_share)},
          {"nll", rounded(format.nll)},
          {"kl", rounded(format.kl)},
          {"top1", rounded(format.top1)}};
}

OrderedJson grid_json(const MeasuredGrid& grid) {
  return {
      {"base", grid.base}, {"rows", grid.rows}, {"columns", grid.columns}, {"cells", grid.cells}};
}

OrderedJson rows_json(const std::vector<std::vector<double>>& rows) {
  OrderedJson list = OrderedJson::array();
  for (const auto& row : rows) list.push_back(numbers(row));
  return list;
}

OrderedJson sensitivity_json(const TensorSensitivity& sensitivity) {
  return {{"base", sensitivity.base},          {"windows", sensitivity.windows},
          {"seed", sensitivity.seed},          {"widths", sensitivity.widths},
          {"key", rows_json(sensitivity.key)}, {"value", rows_json(sensitivity.value)}};
}

OrderedJson plans_json(const std::vector<MeasuredPlan>& plans) {
  OrderedJson list = OrderedJson::array();
  for (const MeasuredPlan& plan : plans) {
    list.push_back({{"method", plan.method},
                    {"budget", rounded(plan.budget)},
                    {"layers", plan.layers},
                    {"score", format_json(plan.score)}});
  }
  return list;
}

}  // namespace

nlohmann::ordered_json to_json(const Document& document) {
  const ModelSummary& model = document.model;
  const TextSummary& text = document.text;
  OrderedJson formats = OrderedJson::array();
  for (const MeasuredFormat& format : document.formats) formats.push_back(format_json(format));
  OrderedJson result = {{"kvq_analysis", kDocumentVersion},
                        {"program", document.program},
                        {"command", document.command},
                        {"model",
                         {{"name", model.name},
                          {"type", model.type},
                          {"layers", model.layers},
                          {"query_heads", model.query_heads},
                          {"kv_heads", model.kv_heads},
                          {"head_dim", model.head_dim},
                          {"context", model.context}}},
                        {"text",
                         {{"file", nullptr},
                          {"seed", text.seed},
                          {"windows", text.windows},
                          {"tokens_per_window", text.tokens_per_window},
                          {"nll_16bit", rounded(text.nll_16bit)}}},
                        {"sinks", document.sinks},
                        {"window", document.window},
                        {"weight_norms", nullptr},
                        {"activations", activations_json(document)},
                        {"formats", std::move(formats)},
                        {"widths", grid_json(document.widths)},
                        {"rotations", grid_json(document.rotations)},
                        {"groups", grid_json(document.groups)},
                        {"sensitivity", nullptr},
                        {"plans", plans_json(document.plans)}};
  if (!text.file.empty()) result["text"]["file"] = text.file;
  if (document.weight_norms) {
    const WeightNorms& norms = *document.weight_norms;
    result["weight_norms"] = {
        {"frobenius",
         {{"w_k", numbers(norms.key_frobenius)}, {"w_v", numbers(norms.value_frobenius)}}},
        {"spectral",
         {{"w_k", numbers(norms.key_spectral)}, {"w_v", numbers(norms.value_spectral)}}}};
  }
  if (document.sensitivity) result["sensitivity"] = sensitivity_json(*document.sensitivity);
  return result;
}

const MeasuredFormat* Document::find_format(const std::string& name) const {
  const auto found = std::ranges::find(formats, name, &MeasuredFormat::name);
  return found == formats.end() ? nullptr : &*found;
}

}  // namespace kvq
