// The architectures that run: one table, one entry each. An architecture here is a decoder with RMS
// norms, rotary positions, grouped-query attention and a gated SiLU feed-forward layer; entries
// differ in options and tensor names.
#pragma once

#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "kvq/model/config.h"

namespace kvq {

// Names of a model's modules; "{}" stands for the layer's number. A module's tensors are
// "<module>.weight" and, where it has one, "<module>.bias". Projections have shape [out, in].
struct ModuleNames {
  std::string_view embedding;         // [vocabulary, hidden]
  std::string_view attention_norm;    // [hidden], a layer
  std::string_view query;             // [query_heads * head_dim, hidden], a layer
  std::string_view key;               // [kv_heads * head_dim, hidden], a layer
  std::string_view value;             // [kv_heads * head_dim, hidden], a layer
  std::string_view attention_output;  // [hidden, query_heads * head_dim], a layer
  std::string_view query_norm;        // [head_dim], a layer; where ModelConfig::qk_norm
  std::string_view key_norm;          // [head_dim], a layer; where ModelConfig::qk_norm
  std::string_view mlp_norm;          // [hidden], a layer
  std::string_view gate;              // [intermediate, hidden], a layer
  std::string_view up;                // [intermediate, hidden], a layer
  std::string_view down;              // [hidden, intermediate], a layer
  std::string_view final_norm;        // [hidden]
  std::string_view output;            // [vocabulary, hidden]; absent where embeddings are tied
};

struct ArchitectureInfo {
  Architecture architecture;
  std::string_view model_type;  // "model_type" of config.json
  std::string_view class_name;  // the entry of "architectures" in config.json
  bool qk_norm;
  // Where config.json lacks head_dim and num_key_value_heads: hidden / heads and heads. Otherwise
  // they must be written.
  bool derives_head_shape;
  // Whether "mlp_bias" means something; q, k, v and attention-output biases follow
  // "attention_bias" everywhere.
  bool has_mlp_bias;
  ModuleNames modules;
};

// Every supported architecture.
std::span<const ArchitectureInfo> architectures();

const ArchitectureInfo& info(Architecture architecture);

// weight_name(modules.query, 3) = "model.layers.3.self_attn.q_proj.weight"; a module without "{}"
// ignores the layer.
std::string weight_name(std::string_view module, int layer = 0);
std::string bias_name(std::string_view module, int layer = 0);

}  // namespace kvq
