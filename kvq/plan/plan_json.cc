// plan.json: a Plan as text and back.
#include <array>
#include <limits>
#include <string_view>

#include "kvq/base/file.h"
#include "kvq/base/json_file.h"
#include "kvq/plan/plan.h"

namespace kvq {
namespace {

using OrderedJson = nlohmann::ordered_json;

constexpr int kVersion = 1;

template <typename Value>
struct Choice {
  std::string_view text;
  Value value;
};
constexpr std::array<Choice<Axis>, 2> kAxes{{{"token", Axis::kToken}, {"channel", Axis::kChannel}}};
constexpr std::array<Choice<Parameters>, 2> kParameters{
    {{"symmetric", Parameters::kSymmetric}, {"affine", Parameters::kAffine}}};
constexpr std::array<Choice<Fit>, 3> kFits{
    {{"mse", Fit::kMeanSquare}, {"minmax", Fit::kMinMax}, {"hqq", Fit::kHqq}}};
constexpr std::array<Choice<Rotation>, 2> kRotations{
    {{"hadamard", Rotation::kHadamard}, {"none", Rotation::kNone}}};

template <typename Value, std::size_t count>
std::string_view text_of(const std::array<Choice<Value>, count>& choices, Value value) {
  for (const auto& choice : choices) {
    if (choice.value == value) return choice.text;
  }
  return "";
}

template <typename Value, std::size_t count>
Result<Value> read_choice(const JsonFields& fields, std::string_view field,
                          const std::array<Choice<Value>, count>& choices) {
  std::string allowed;
  const Json* found = fields.find(field);
  for (const auto& choice : choices) {
    if (found != nullptr && *found == std::string(choice.text)) return choice.value;
    allowed += fmt::format("{}\"{}\"", allowed.empty() ? "" : " or ", choice.text);
  }
  return fields.wrong(field, allowed);
}

Result<Bits> read_bits(const JsonFields& fields) {
  std::vector<Bits> known = packed_bits();
  known.push_back(Bits::k16);
  const Json* found = fields.find("bits");
  std::string allowed;
  for (const Bits bits : known) {
    if (found != nullptr && found->is_number() && found->get<double>() == code_bits(bits))
      return bits;
    allowed += fmt::format("{}{}",
                           allowed.empty()     ? ""
                           : bits == Bits::k16 ? " or "
                                               : ", ",
                           name(bits));
  }
  return fields.wrong("bits", allowed);
}

// Fields that the format does not have are mistakes: a misspelled option must not be passed over.
Status check_fields(const Json& object, const std::string& where,
                    std::initializer_list<std::string_view> allowed) {
  for (const auto& [field, value] : object.items()) {
    if (std::ranges::find(allowed, std::string_view(field)) == allowed.end()) {
      return fail("{}: {}: unknown field, expected {}", where, in_quotes(field),
                  fmt::join(allowed, ", "));
    }
  }
  return {};
}

Result<TensorSpec> read_tensor(const JsonFields& layer, std::string_view tensor) {
  KVQ_ASSIGN_OR_RETURN(const JsonFields fields, layer.object(tensor));
  const Json& object = *layer.find(tensor);
  TensorSpec spec;
  KVQ_ASSIGN_OR_RETURN(spec.bits, read_bits(fields));
  if (spec.bits == Bits::k16) {
    KVQ_RETURN_IF_ERROR(check_fields(object, fields.where(), {"bits"}));
    return spec;
  }
  KVQ_RETURN_IF_ERROR(
      check_fields(object, fields.where(), {"bits", "axis", "group", "params", "fit", "rotation"}));
  KVQ_ASSIGN_OR_RETURN(spec.axis, read_choice(fields, "axis", kAxes));
  KVQ_ASSIGN_OR_RETURN(spec.group, fields.count("group"));
  KVQ_ASSIGN_OR_RETURN(spec.parameters, read_choice(fields, "params", kParameters));
  KVQ_ASSIGN_OR_RETURN(spec.fit, read_choice(fields, "fit", kFits));
  KVQ_ASSIGN_OR_RETURN(spec.rotation, read_choice(fields, "rotation", kRotations));
  return spec;
}

Result<std::vector<LayerSpec>> read_layers(const JsonFields& plan) {
  KVQ_ASSIGN_OR_RETURN(const Json* list, plan.list("layers"));
  std::vector<LayerSpec> layers;
  layers.reserve(list->size());
  for (std::size_t i = 0; i < list->size(); ++i) {
    const std::string where = fmt::format("{}: layers[{}]", plan.where(), i);
    const Json& object = (*list)[i];
    if (!object.is_object()) return fail("{}: expected an object, found {}", where, shown(object));
    KVQ_RETURN_IF_ERROR(check_fields(object, where, {"key", "value"}));
    const JsonFields fields(object, where);
    LayerSpec layer;
    KVQ_ASSIGN_OR_RETURN(layer.key, read_tensor(fields, "key"));
    KVQ_ASSIGN_OR_RETURN(layer.value, read_tensor(fields, "value"));
    layers.push_back(layer);
  }
  return layers;
}

Result<PlanModel> read_model(const JsonFields& plan) {
  KVQ_ASSIGN_OR_RETURN(const JsonFields fields, plan.object("model"));
  KVQ_RETURN_IF_ERROR(check_fields(*plan.find("model"), fields.where(),
                                   {"identity", "layers", "kv_heads", "head_dim"}));
  PlanModel model;
  if (fields.has("identity")) {
    KVQ_ASSIGN_OR_RETURN(model.identity, fields.text("identity"));
    if (model.identity.empty()) return fields.wrong("identity", "16 hexadecimal digits, or null");
  }
  KVQ_ASSIGN_OR_RETURN(model.layers, fields.count("layers"));
  KVQ_ASSIGN_OR_RETURN(model.kv_heads, fields.count("kv_heads"));
  KVQ_ASSIGN_OR_RETURN(model.head_dim, fields.count("head_dim"));
  return model;
}

// A number of tokens, from 0 on.
Result<int> read_tokens(const JsonFields& fields, std::string_view field) {
  const Json* value = fields.find(field);
  const bool good = value != nullptr && value->is_number_unsigned() &&
                    value->get<std::uint64_t>() <= std::numeric_limits<int>::max();
  if (!good) return fields.wrong(field, "an integer from 0 on");
  return value->get<int>();
}

Status check_version(const Json& json, const JsonFields& fields) {
  const Json* version = fields.find("kvq_plan");
  if (version == nullptr) {
    return fail("{}: not a plan: expected the field \"kvq_plan\", found none", fields.where());
  }
  if (*version != kVersion) {
    return fields.wrong("kvq_plan", fmt::format("{}, the version that this build reads", kVersion));
  }
  return check_fields(
      json, fields.where(),
      {"kvq_plan", "model", "method", "budget", "sinks", "window", "layers", "effective_bits"});
}

OrderedJson to_json(const TensorSpec& spec) {
  const double bits = code_bits(spec.bits);
  OrderedJson json;
  if (spec.bits == Bits::kTernary)
    json["bits"] = bits;
  else
    json["bits"] = static_cast<int>(bits);
  if (spec.bits == Bits::k16) return json;
  json["axis"] = text_of(kAxes, spec.axis);
  json["group"] = spec.group;
  json["params"] = text_of(kParameters, spec.parameters);
  json["fit"] = text_of(kFits, spec.fit);
  json["rotation"] = text_of(kRotations, spec.rotation);
  return json;
}

Result<Plan> plan_of(const Json& json, const std::string& where) {
  const JsonFields fields(json, where);
  KVQ_RETURN_IF_ERROR(check_version(json, fields));
  Plan plan;
  KVQ_ASSIGN_OR_RETURN(plan.model, read_model(fields));
  KVQ_ASSIGN_OR_RETURN(plan.method, fields.text("method"));
  if (fields.has("budget")) {
    KVQ_ASSIGN_OR_RETURN(plan.budget, fields.positive("budget"));
  }
  KVQ_ASSIGN_OR_RETURN(plan.sinks, read_tokens(fields, "sinks"));
  KVQ_ASSIGN_OR_RETURN(plan.window, read_tokens(fields, "window"));
  KVQ_ASSIGN_OR_RETURN(plan.layers, read_layers(fields));
  KVQ_ASSIGN_OR_RETURN(plan.effective_bits, fields.positive("effective_bits"));
  const Status valid = validate(plan);
  if (!valid) return fail("{}: {}", where, valid.error().message);
  return plan;
}

}  // namespace

Result<Plan> parse_plan(std::string_view text, const std::string& where) {
  KVQ_ASSIGN_OR_RETURN(const Json json, parse_json_object(text, where));
  return plan_of(json, where);
}

Result<Plan> read_plan(const std::filesystem::path& path) {
  KVQ_ASSIGN_OR_RETURN(const Json json, read_json_object(path));
  return plan_of(json, path.string());
}

std::string to_json(const Plan& plan) {
  OrderedJson layers = OrderedJson::array();
  for (const LayerSpec& layer : plan.layers) {
    layers.push_back({{"key", to_json(layer.key)}, {"value", to_json(layer.value)}});
  }
  OrderedJson json = {{"kvq_plan", kVersion},
                      {"model",
                       {{"identity", nullptr},
                        {"layers", plan.model.layers},
                        {"kv_heads", plan.model.kv_heads},
                        {"head_dim", plan.model.head_dim}}},
                      {"method", plan.method},
                      {"budget", nullptr},
                      {"sinks", plan.sinks},
                      {"window", plan.window},
                      {"layers", std::move(layers)},
                      {"effective_bits", plan.effective_bits}};
  if (!plan.model.identity.empty()) json["model"]["identity"] = plan.model.identity;
  if (plan.budget > 0) json["budget"] = plan.budget;
  return json.dump(1) + "\n";
}

Status write_plan(const Plan& plan, const std::filesystem::path& path) {
  return write_file(path, to_json(plan));
}

}  // namespace kvq
