// config.json (and generation_config.json) of a checkpoint.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "kvq/base/status.h"

namespace kvq {

enum class Architecture : std::uint8_t { kLlama, kQwen3 };

// Llama 3.1's frequency scaling ("rope_type": "llama3"); unused where `enabled` is false.
struct Llama3RopeScaling {
  bool enabled = false;
  double factor = 1;
  double low_frequency_factor = 1;
  double high_frequency_factor = 4;
  double original_context = 8192;
};

struct ModelConfig {
  Architecture architecture = Architecture::kLlama;
  std::string model_type;  // as written: "llama", "qwen3"
  int vocabulary = 0;
  int hidden = 0;
  int intermediate = 0;
  int layers = 0;
  int query_heads = 0;
  int kv_heads = 0;
  int head_dim = 0;
  int context = 0;  // max_position_embeddings
  double norm_epsilon = 1e-6;
  double rope_theta = 10000;
  Llama3RopeScaling rope_scaling;
  bool tied_embeddings = false;
  bool attention_bias = false;  // q, k, v (and Llama's o) projections have a bias
  bool mlp_bias = false;
  bool qk_norm = false;          // RMS norm of q and k per head, before RoPE (Qwen3)
  std::vector<int> stop_tokens;  // eos_token_id of generation_config.json, else of config.json
};

// Reads directory/config.json. Unsupported architectures, rope types, sliding windows and
// contradictory shapes are errors that say what is supported.
Result<ModelConfig> read_config(const std::filesystem::path& directory);

}  // namespace kvq
