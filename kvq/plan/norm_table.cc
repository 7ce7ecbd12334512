#include "kvq/plan/norm_table.h"

#include <cmath>
#include <functional>

#include "kvq/base/json_file.h"

namespace kvq {
namespace {

using OrderedJson = nlohmann::ordered_json;

Result<std::vector<double>> read_list(const Json& list, const std::string& where) {
  if (!list.is_array() || list.empty()) {
    return fail("{}: expected a list of norms, found {}", where, shown(list));
  }
  std::vector<double> norms;
  norms.reserve(list.size());
  for (std::size_t i = 0; i < list.size(); ++i) {
    const bool good =
        list[i].is_number() && std::isfinite(list[i].get<double>()) && list[i].get<double>() > 0;
    if (!good)
      return fail("{}[{}]: expected a positive number, found {}", where, i, shown(list[i]));
    norms.push_back(list[i].get<double>());
  }
  return norms;
}

Result<std::vector<double>> read_layers(const JsonFields& fields, std::string_view field) {
  KVQ_ASSIGN_OR_RETURN(const Json* list, fields.list(field));
  return read_list(*list, fmt::format("{}: {}", fields.where(), field));
}

Result<std::vector<std::vector<double>>> read_heads(const JsonFields& fields,
                                                    std::string_view field,
                                                    const PlanModel& model) {
  std::vector<std::vector<double>> heads;
  if (!fields.has(field)) return heads;
  KVQ_ASSIGN_OR_RETURN(const Json* list, fields.list(field));
  for (std::size_t layer = 0; layer < list->size(); ++layer) {
    KVQ_ASSIGN_OR_RETURN(
        std::vector<double> norms,
        read_list((*list)[layer], fmt::format("{}: {}[{}]", fields.where(), field, layer)));
    if (norms.size() != static_cast<std::size_t>(model.kv_heads)) {
      return fail("{}: {}[{}]: expected {} norms, one a kv head, found {}", fields.where(), field,
                  layer, model.kv_heads, norms.size());
    }
    heads.push_back(std::move(norms));
  }
  if (heads.size() != static_cast<std::size_t>(model.layers)) {
    return fail("{}: {}: expected {} layers as w_k has, found {}", fields.where(), field,
                model.layers, heads.size());
  }
  return heads;
}

Result<CostTable> make_costs(
    const NormTable& norms, std::size_t candidates,
    const std::function<TensorSpec(std::size_t tensor, std::size_t candidate)>& spec_of,
    const std::function<double(double norm, const TensorSpec& spec)>& cost_of) {
  CostTable table;
  table.tensors.resize(2 * norms.keys.size());
  for (std::size_t tensor = 0; tensor < table.tensors.size(); ++tensor) {
    const bool is_key = tensor % 2 == 0;
    const double norm = (is_key ? norms.keys : norms.values)[tensor / 2];
    for (std::size_t i = 0; i < candidates; ++i) {
      const TensorSpec spec = spec_of(tensor, i);
      KVQ_ASSIGN_OR_RETURN(const std::int64_t bytes,
                           tensor_bytes(spec, is_key, norms.model.kv_heads, norms.model.head_dim));
      table.tensors[tensor].push_back({spec, bytes, cost_of(norm, spec)});
    }
  }
  return table;
}

}  // namespace

Result<NormTable> read_norms(const std::filesystem::path& path) {
  KVQ_ASSIGN_OR_RETURN(const Json json, read_json_object(path));
  const JsonFields fields(json, path.string());
  NormTable table;
  KVQ_ASSIGN_OR_RETURN(table.label, fields.text("model", ""));
  KVQ_ASSIGN_OR_RETURN(table.norm, fields.text("norm", ""));
  KVQ_ASSIGN_OR_RETURN(table.model.identity, fields.text("identity", ""));
  if (fields.has("kv_heads") || fields.has("head_dim")) {
    KVQ_ASSIGN_OR_RETURN(table.model.kv_heads, fields.count("kv_heads"));
    KVQ_ASSIGN_OR_RETURN(table.model.head_dim, fields.count("head_dim"));
  }
  KVQ_ASSIGN_OR_RETURN(table.keys, read_layers(fields, "w_k"));
  KVQ_ASSIGN_OR_RETURN(table.values, read_layers(fields, "w_v"));
  if (table.keys.size() != table.values.size()) {
    return fail("{}: w_v: expected {} norms as w_k has, found {}", path.string(), table.keys.size(),
                table.values.size());
  }
  table.model.layers = static_cast<int>(table.keys.size());
  KVQ_ASSIGN_OR_RETURN(table.key_heads, read_heads(fields, "heads_k", table.model));
  KVQ_ASSIGN_OR_RETURN(table.value_heads, read_heads(fields, "heads_v", table.model));
  return table;
}

std::string to_json(const NormTable& table) {
  OrderedJson json = {{"model", table.label}};
  if (!table.norm.empty()) json["norm"] = table.norm;
  if (!table.model.identity.empty()) json["identity"] = table.model.identity;
  if (table.model.kv_heads > 0) {
    json["kv_heads"] = table.model.kv_heads;
    json["head_dim"] = table.model.head_dim;
  }
  json["w_k"] = table.keys;
  json["w_v"] = table.values;
  if (!table.key_heads.empty()) {
    json["heads_k"] = table.key_heads;
    json["heads_v"] = table.value_heads;
  }
  return json.dump(1, ' ', false, OrderedJson::error_handler_t::replace) + "\n";
}

Result<CostTable> width_costs(const NormTable& norms, const LayerSpec& base,
                              const std::vector<Bits>& widths) {
  return make_costs(
      norms, widths.size(),
      [&](std::size_t tensor, std::size_t i) {
        TensorSpec spec = tensor % 2 == 0 ? base.key : base.value;
        spec.bits = widths[i];
        return spec;
      },
      [](double norm, const TensorSpec& spec) {
        return norm * norm * std::pow(2.0, -2.0 * code_bits(spec.bits));
      });
}

Result<CostTable> group_costs(const NormTable& norms, const std::vector<LayerSpec>& base,
                              const std::vector<int>& groups) {
  return make_costs(
      norms, groups.size(),
      [&](std::size_t tensor, std::size_t i) {
        TensorSpec spec = tensor % 2 == 0 ? base[tensor / 2].key : base[tensor / 2].value;
        spec.group = groups[i];
        return spec;
      },
      [](double norm, const TensorSpec& spec) { return norm * spec.group; });
}

}  // namespace kvq
