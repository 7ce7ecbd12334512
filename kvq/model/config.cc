#include "kvq/model/config.h"

#include <algorithm>
#include <limits>

#include "kvq/base/json_file.h"
#include "kvq/model/architecture.h"
#include "kvq/model/rope_config.h"

namespace kvq {
namespace {

Result<const ArchitectureInfo*> read_architecture(const JsonFields& fields) {
  KVQ_ASSIGN_OR_RETURN(const std::string model_type, fields.text("model_type"));
  const auto known = architectures();
  const auto found = std::ranges::find(known, model_type, &ArchitectureInfo::model_type);
  if (found == known.end()) {
    std::string supported;
    for (const ArchitectureInfo& entry : known) {
      supported += fmt::format("{}\"{}\"", supported.empty() ? "" : " or ", entry.model_type);
    }
    return fields.wrong("model_type", supported);
  }
  if (fields.has("architectures")) {
    KVQ_ASSIGN_OR_RETURN(const Json* classes, fields.list("architectures"));
    if (std::ranges::find(*classes, Json(found->class_name)) == classes->end()) {
      return fields.wrong("architectures", fmt::format("[\"{}\"]", found->class_name));
    }
  }
  return &*found;
}

// What would change the computation in ways that are not built.
Status check_supported(const JsonFields& fields) {
  KVQ_ASSIGN_OR_RETURN(const std::string activation, fields.text("hidden_act", "silu"));
  if (activation != "silu") return fields.wrong("hidden_act", "\"silu\"");
  if (fields.has("quantization_config")) {
    return fields.wrong("quantization_config", "none (weights in F32, F16 or BF16)");
  }
  KVQ_ASSIGN_OR_RETURN(const bool slides, fields.flag("use_sliding_window", false));
  if (slides) return fields.wrong("use_sliding_window", "false (full attention)");
  // With use_sliding_window: false the width is written but unused (Qwen3).
  if (fields.has("sliding_window") && !fields.has("use_sliding_window")) {
    return fields.wrong("sliding_window", "none (full attention)");
  }
  if (fields.has("layer_types")) {
    KVQ_ASSIGN_OR_RETURN(const Json* types, fields.list("layer_types"));
    for (const Json& type : *types) {
      if (type != "full_attention") {
        return fields.wrong("layer_types", "\"full_attention\" only");
      }
    }
  }
  return {};
}

Status read_shape(const JsonFields& fields, const ArchitectureInfo& architecture,
                  ModelConfig& config) {
  KVQ_ASSIGN_OR_RETURN(config.vocabulary, fields.count("vocab_size"));
  KVQ_ASSIGN_OR_RETURN(config.hidden, fields.count("hidden_size"));
  KVQ_ASSIGN_OR_RETURN(config.intermediate, fields.count("intermediate_size"));
  KVQ_ASSIGN_OR_RETURN(config.layers, fields.count("num_hidden_layers"));
  KVQ_ASSIGN_OR_RETURN(config.query_heads, fields.count("num_attention_heads"));
  KVQ_ASSIGN_OR_RETURN(config.context, fields.count("max_position_embeddings"));
  if (architecture.derives_head_shape) {
    KVQ_ASSIGN_OR_RETURN(config.kv_heads, fields.count("num_key_value_heads", config.query_heads));
  } else {
    KVQ_ASSIGN_OR_RETURN(config.kv_heads, fields.count("num_key_value_heads"));
  }
  if (fields.has("head_dim") || !architecture.derives_head_shape) {
    KVQ_ASSIGN_OR_RETURN(config.head_dim, fields.count("head_dim"));
    return {};
  }
  if (config.hidden % config.query_heads != 0) {
    return fields.wrong("hidden_size", fmt::format("a multiple of num_attention_heads ({}), as "
                                                   "there is no head_dim",
                                                   config.query_heads));
  }
  config.head_dim = config.hidden / config.query_heads;
  return {};
}

Status check_shape(const JsonFields& fields, const ModelConfig& config) {
  if (config.query_heads % config.kv_heads != 0) {
    return fields.wrong("num_key_value_heads",
                        fmt::format("a divisor of num_attention_heads ({})", config.query_heads));
  }
  if (config.head_dim % 2 != 0) {
    return fields.wrong("head_dim", fmt::format("an even number (it is {})", config.head_dim));
  }
  const std::int64_t width = std::int64_t{config.query_heads} * config.head_dim;
  if (width > std::numeric_limits<int>::max()) {
    return fields.wrong("head_dim", fmt::format("{} heads of it below 2^31", config.query_heads));
  }
  if (fields.has("layer_types") &&
      fields.find("layer_types")->size() != static_cast<std::size_t>(config.layers)) {
    return fields.wrong("layer_types",
                        fmt::format("an entry for each of {} layers", config.layers));
  }
  return {};
}

Result<std::vector<int>> read_stop_tokens(const JsonFields& fields, int vocabulary) {
  constexpr std::string_view kField = "eos_token_id";
  std::vector<int> tokens;
  const Json* value = fields.find(kField);
  if (value == nullptr) return tokens;
  const Json list = value->is_array() ? *value : Json::array({*value});
  for (const Json& token : list) {
    if (!token.is_number_unsigned() ||
        token.get<std::uint64_t>() >= static_cast<std::uint64_t>(vocabulary)) {
      return fields.wrong(kField,
                          fmt::format("a token id below {}, or a list of them", vocabulary));
    }
    tokens.push_back(token.get<int>());
  }
  return tokens;
}

Result<std::vector<int>> find_stop_tokens(const std::filesystem::path& directory,
                                          const JsonFields& config_fields, int vocabulary) {
  const std::filesystem::path path = directory / "generation_config.json";
  std::error_code ignored;
  if (std::filesystem::exists(path, ignored)) {
    KVQ_ASSIGN_OR_RETURN(const Json generation, read_json_object(path));
    const JsonFields fields(generation, path.string());
    if (fields.has("eos_token_id")) return read_stop_tokens(fields, vocabulary);
  }
  return read_stop_tokens(config_fields, vocabulary);
}

}  // namespace

Result<ModelConfig> read_config(const std::filesystem::path& directory) {
  const std::filesystem::path path = directory / "config.json";
  KVQ_ASSIGN_OR_RETURN(const Json json, read_json_object(path));
  const JsonFields fields(json, path.string());
  KVQ_ASSIGN_OR_RETURN(const ArchitectureInfo* architecture, read_architecture(fields));
  KVQ_RETURN_IF_ERROR(check_supported(fields));

  ModelConfig config;
  config.architecture = architecture->architecture;
  config.model_type = architecture->model_type;
  config.qk_norm = architecture->qk_norm;
  KVQ_RETURN_IF_ERROR(read_shape(fields, *architecture, config));
  KVQ_RETURN_IF_ERROR(check_shape(fields, config));
  KVQ_ASSIGN_OR_RETURN(config.norm_epsilon, fields.positive("rms_norm_eps", config.norm_epsilon));
  KVQ_ASSIGN_OR_RETURN(config.tied_embeddings, fields.flag("tie_word_embeddings", false));
  KVQ_ASSIGN_OR_RETURN(config.attention_bias, fields.flag("attention_bias", false));
  if (architecture->has_mlp_bias) {
    KVQ_ASSIGN_OR_RETURN(config.mlp_bias, fields.flag("mlp_bias", false));
  }
  KVQ_RETURN_IF_ERROR(read_rope(fields, config));
  KVQ_ASSIGN_OR_RETURN(config.stop_tokens, find_stop_tokens(directory, fields, config.vocabulary));
  return config;
}

}  // namespace kvq
