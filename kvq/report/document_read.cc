// JSON to a Document, every length checked: figures index without asking.
#include <cmath>

#include "kvq/base/json_file.h"
#include "kvq/report/document.h"
#include "kvq/report/document_format.h"

namespace kvq {
namespace {

Result<double> number(const JsonFields& fields, std::string_view field) {
  const Json* value = fields.find(field);
  if (value == nullptr || !value->is_number()) return fields.wrong(field, "a number");
  return value->get<double>();
}

// 0 .. 2^31 - 1.
Result<int> count_or_zero(const JsonFields& fields, std::string_view field) {
  const Json* value = fields.find(field);
  if (value != nullptr && *value == 0) return 0;
  return fields.count(field);
}

Result<std::uint64_t> unsigned_integer(const JsonFields& fields, std::string_view field) {
  const Json* value = fields.find(field);
  if (value == nullptr || !value->is_number_unsigned()) {
    return fields.wrong(field, "an integer of at least 0");
  }
  return value->get<std::uint64_t>();
}

Result<std::vector<double>> numbers(const JsonFields& fields, std::string_view field,
                                    std::size_t count) {
  KVQ_ASSIGN_OR_RETURN(const Json* list, fields.list(field));
  std::vector<double> values;
  for (const Json& element : *list) {
    if (element.is_number()) values.push_back(element.get<double>());
  }
  if (values.size() != count || list->size() != count) {
    return fields.wrong(field, fmt::format("a list of {} numbers", count));
  }
  return values;
}

constexpr std::size_t kAnyCount = static_cast<std::size_t>(-1);

Result<std::vector<std::string>> texts(const JsonFields& fields, std::string_view field,
                                       std::size_t count = kAnyCount) {
  KVQ_ASSIGN_OR_RETURN(const Json* list, fields.list(field));
  std::vector<std::string> values;
  for (const Json& element : *list) {
    if (element.is_string()) values.push_back(element.get<std::string>());
  }
  if (values.size() != list->size()) return fields.wrong(field, "a list of strings");
  if (count != kAnyCount && values.size() != count) {
    return fields.wrong(field, fmt::format("a list of {} strings", count));
  }
  return values;
}

// The objects of a list.
Result<std::vector<JsonFields>> objects(const JsonFields& fields, std::string_view field) {
  KVQ_ASSIGN_OR_RETURN(const Json* list, fields.list(field));
  std::vector<JsonFields> result;
  for (const Json& element : *list) {
    if (!element.is_object()) return fields.wrong(field, "a list of objects");
    result.emplace_back(element, fmt::format("{}: {}[{}]", fields.where(), field, result.size()));
  }
  return result;
}

Result<ModelSummary> read_model(const JsonFields& fields) {
  ModelSummary model;
  KVQ_ASSIGN_OR_RETURN(model.name, fields.text("name"));
  KVQ_ASSIGN_OR_RETURN(model.type, fields.text("type"));
  KVQ_ASSIGN_OR_RETURN(model.layers, fields.count("layers"));
  KVQ_ASSIGN_OR_RETURN(model.query_heads, fields.count("query_heads"));
  KVQ_ASSIGN_OR_RETURN(model.kv_heads, fields.count("kv_heads"));
  KVQ_ASSIGN_OR_RETURN(model.head_dim, fields.count("head_dim"));
  KVQ_ASSIGN_OR_RETURN(model.context, fields.count("context"));
  return model;
}

Result<TextSummary> read_text(const JsonFields& fields) {
  TextSummary text;
  KVQ_ASSIGN_OR_RETURN(text.file, fields.text("file", ""));
  KVQ_ASSIGN_OR_RETURN(text.seed, unsigned_integer(fields, "seed"));
  KVQ_ASSIGN_OR_RETURN(text.windows, fields.count("windows"));
  KVQ_ASSIGN_OR_RETURN(text.tokens_per_window, fields.count("tokens_per_window"));
  KVQ_ASSIGN_OR_RETURN(text.nll_16bit, number(fields, "nll_16bit"));
  return text;
}

Result<TensorActivations> read_tensor(const JsonFields& fields, std::size_t head_dim,
                                      std::size_t formats) {
  TensorActivations tensor;
  KVQ_ASSIGN_OR_RETURN(const auto size, numbers(fields, "rms", 3));
  tensor.root_mean_square = {size[0], size[1], size[2]};
  KVQ_ASSIGN_OR_RETURN(const JsonFields spectrum, fields.object("spectrum"));
  KVQ_ASSIGN_OR_RETURN(const auto mean, numbers(spectrum, "mean", head_dim));
  KVQ_ASSIGN_OR_RETURN(const auto low, numbers(spectrum, "low", head_dim));
  KVQ_ASSIGN_OR_RETURN(const auto high, numbers(spectrum, "high", head_dim));
  tensor.spectrum.reserve(head_dim);
  for (std::size_t i = 0; i < head_dim; ++i) tensor.spectrum.push_back({mean[i], low[i], high[i]});
  KVQ_ASSIGN_OR_RETURN(const auto squared, numbers(fields, "mse", formats));
  KVQ_ASSIGN_OR_RETURN(const auto relative, numbers(fields, "relative_error", formats));
  tensor.errors.reserve(formats);
  for (std::size_t i = 0; i < formats; ++i) tensor.errors.push_back({squared[i], relative[i]});
  return tensor;
}

Status read_activations(const JsonFields& fields, Document& document) {
  Activations& activations = document.activations;
  KVQ_ASSIGN_OR_RETURN(activations.tokens, fields.count("tokens"));
  KVQ_ASSIGN_OR_RETURN(activations.formats, texts(fields, "error_formats"));
  KVQ_ASSIGN_OR_RETURN(document.error_bits,
                       numbers(fields, "error_bits", activations.formats.size()));
  KVQ_ASSIGN_OR_RETURN(const auto layers, objects(fields, "layers"));
  if (layers.size() != static_cast<std::size_t>(document.model.layers)) {
    return fields.wrong("layers", fmt::format("a list of {} layers", document.model.layers));
  }
  const auto head_dim = static_cast<std::size_t>(document.model.head_dim);
  for (const JsonFields& layer : layers) {
    LayerActivations& target = activations.layers.emplace_back();
    KVQ_ASSIGN_OR_RETURN(const JsonFields key, layer.object("key"));
    KVQ_ASSIGN_OR_RETURN(target.key, read_tensor(key, head_dim, activations.formats.size()));
    KVQ_ASSIGN_OR_RETURN(const JsonFields value, layer.object("value"));
    KVQ_ASSIGN_OR_RETURN(target.value, read_tensor(value, head_dim, activations.formats.size()));
  }
  return {};
}

Result<WeightNorms> read_norms(const JsonFields& fields, std::size_t layers) {
  WeightNorms norms;
  KVQ_ASSIGN_OR_RETURN(const JsonFields frobenius, fields.object("frobenius"));
  KVQ_ASSIGN_OR_RETURN(norms.key_frobenius, numbers(frobenius, "w_k", layers));
  KVQ_ASSIGN_OR_RETURN(norms.value_frobenius, numbers(frobenius, "w_v", layers));
  KVQ_ASSIGN_OR_RETURN(const JsonFields spectral, fields.object("spectral"));
  KVQ_ASSIGN_OR_RETURN(norms.key_spectral, numbers(spectral, "w_k", layers));
  KVQ_ASSIGN_OR_RETURN(norms.value_spectral, numbers(spectral, "w_v", layers));
  return norms;
}

Result<MeasuredFormat> read_format(const JsonFields& fields) {
  MeasuredFormat format;
  KVQ_ASSIGN_OR_RETURN(format.name, fields.text("name"));
  KVQ_ASSIGN_OR_RETURN(format.effective_bits, fields.positive("effective_bits"));
  KVQ_ASSIGN_OR_RETURN(format.cache_share, fields.positive("cache_share"));
  KVQ_ASSIGN_OR_RETURN(format.nll, number(fields, "nll"));
  KVQ_ASSIGN_OR_RETURN(format.kl, number(fields, "kl"));
  KVQ_ASSIGN_OR_RETURN(format.top1, number(fields, "top1"));
  return format;
}

Result<MeasuredGrid> read_grid(const JsonFields& all, std::string_view field,
                               const Document& document) {
  KVQ_ASSIGN_OR_RETURN(const JsonFields fields, all.object(field));
  MeasuredGrid grid;
  KVQ_ASSIGN_OR_RETURN(grid.base, fields.text("base"));
  KVQ_ASSIGN_OR_RETURN(grid.rows, texts(fields, "rows"));
  KVQ_ASSIGN_OR_RETURN(grid.columns, texts(fields, "columns"));
  KVQ_ASSIGN_OR_RETURN(const Json* cells, fields.list("cells"));
  if (cells->size() != grid.rows.size()) {
    return fields.wrong("cells", fmt::format("a list of {} rows", grid.rows.size()));
  }
  for (std::size_t row = 0; row < cells->size(); ++row) {
    const Json object = {{"row", (*cells)[row]}};
    const JsonFields row_fields(object, fmt::format("{}: cells[{}]", fields.where(), row));
    KVQ_ASSIGN_OR_RETURN(auto names, texts(row_fields, "row", grid.columns.size()));
    for (const std::string& name : names) {
      if (document.find_format(name) == nullptr) {
        return fail("{}: cells[{}]: no entry of \"formats\" is called {}", fields.where(), row,
                    in_quotes(name));
      }
    }
    grid.cells.push_back(std::move(names));
  }
  return grid;
}

// [rows][columns]
Result<std::vector<std::vector<double>>> number_rows(const JsonFields& fields,
                                                     std::string_view field, std::size_t rows,
                                                     std::size_t columns) {
  KVQ_ASSIGN_OR_RETURN(const Json* list, fields.list(field));
  if (list->size() != rows) return fields.wrong(field, fmt::format("a list of {} rows", rows));
  std::vector<std::vector<double>> result;
  for (const Json& element : *list) {
    const Json object = {{"row", element}};
    const JsonFields row(object, fmt::format("{}: {}[{}]", fields.where(), field, result.size()));
    KVQ_ASSIGN_OR_RETURN(result.emplace_back(), numbers(row, "row", columns));
  }
  return result;
}

Result<TensorSensitivity> read_sensitivity(const JsonFields& fields, std::size_t layers) {
  TensorSensitivity result;
  KVQ_ASSIGN_OR_RETURN(result.base, fields.text("base"));
  KVQ_ASSIGN_OR_RETURN(result.windows, fields.count("windows"));
  KVQ_ASSIGN_OR_RETURN(result.seed, unsigned_integer(fields, "seed"));
  KVQ_ASSIGN_OR_RETURN(result.widths, texts(fields, "widths"));
  KVQ_ASSIGN_OR_RETURN(result.key, number_rows(fields, "key", layers, result.widths.size()));
  KVQ_ASSIGN_OR_RETURN(result.value, number_rows(fields, "value", layers, result.widths.size()));
  return result;
}

Result<MeasuredPlan> read_plan(const JsonFields& fields, std::size_t layers) {
  MeasuredPlan plan;
  KVQ_ASSIGN_OR_RETURN(plan.method, fields.text("method"));
  KVQ_ASSIGN_OR_RETURN(plan.budget, fields.positive("budget"));
  KVQ_ASSIGN_OR_RETURN(plan.layers, texts(fields, "layers", layers));
  for (const std::string& layer : plan.layers) {
    if (const auto spec = parse_layer_spec(layer); !spec) {
      return fail("{}: layers: {}", fields.where(), spec.error().message);
    }
  }
  KVQ_ASSIGN_OR_RETURN(const JsonFields score, fields.object("score"));
  KVQ_ASSIGN_OR_RETURN(plan.score, read_format(score));
  return plan;
}

}  // namespace

Result<Document> parse_document(const nlohmann::json& object, const std::string& where) {
  const JsonFields fields(object, where);
  const Json* version = fields.find("kvq_analysis");
  if (version == nullptr) {
    return fail("{}: not written by kvq analyze: there is no field \"kvq_analysis\"", where);
  }
  if (*version != kDocumentVersion) {
    return fields.wrong("kvq_analysis", fmt::format("version {}", kDocumentVersion));
  }
  Document document;
  KVQ_ASSIGN_OR_RETURN(document.program, fields.text("program"));
  KVQ_ASSIGN_OR_RETURN(document.command, fields.text("command"));
  KVQ_ASSIGN_OR_RETURN(const JsonFields model, fields.object("model"));
  KVQ_ASSIGN_OR_RETURN(document.model, read_model(model));
  KVQ_ASSIGN_OR_RETURN(const JsonFields text, fields.object("text"));
  KVQ_ASSIGN_OR_RETURN(document.text, read_text(text));
  KVQ_ASSIGN_OR_RETURN(document.sinks, count_or_zero(fields, "sinks"));
  KVQ_ASSIGN_OR_RETURN(document.window, count_or_zero(fields, "window"));
  if (fields.has("weight_norms")) {
    KVQ_ASSIGN_OR_RETURN(const JsonFields norms, fields.object("weight_norms"));
    KVQ_ASSIGN_OR_RETURN(document.weight_norms,
                         read_norms(norms, static_cast<std::size_t>(document.model.layers)));
  }
  KVQ_ASSIGN_OR_RETURN(const JsonFields activations, fields.object("activations"));
  KVQ_RETURN_IF_ERROR(read_activations(activations, document));
  KVQ_ASSIGN_OR_RETURN(const auto formats, objects(fields, "formats"));
  for (const JsonFields& format : formats) {
    KVQ_ASSIGN_OR_RETURN(document.formats.emplace_back(), read_format(format));
  }
  KVQ_ASSIGN_OR_RETURN(document.widths, read_grid(fields, "widths", document));
  KVQ_ASSIGN_OR_RETURN(document.rotations, read_grid(fields, "rotations", document));
  KVQ_ASSIGN_OR_RETURN(document.groups, read_grid(fields, "groups", document));
  const auto layers = static_cast<std::size_t>(document.model.layers);
  if (fields.has("sensitivity")) {
    KVQ_ASSIGN_OR_RETURN(const JsonFields sensitivity, fields.object("sensitivity"));
    KVQ_ASSIGN_OR_RETURN(document.sensitivity, read_sensitivity(sensitivity, layers));
  }
  KVQ_ASSIGN_OR_RETURN(const auto plans, objects(fields, "plans"));
  for (const JsonFields& plan : plans) {
    KVQ_ASSIGN_OR_RETURN(document.plans.emplace_back(), read_plan(plan, layers));
  }
  return document;
}

Result<Document> read_document(const std::filesystem::path& path) {
  KVQ_ASSIGN_OR_RETURN(const Json object, read_json_object(path));
  return parse_document(object, path.string());
}

}  // namespace kvq
