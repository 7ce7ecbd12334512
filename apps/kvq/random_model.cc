#include "apps/kvq/random_model.h"

namespace kvq {

Result<ModelConfig> random_model_config(const std::string& name) {
  if (name != "llama-8b") return fail("--random-model {}: expected llama-8b", name);
  ModelConfig config;
  config.architecture = Architecture::kLlama;
  config.model_type = "llama";
  config.vocabulary = 128256;
  config.hidden = 4096;
  config.intermediate = 14336;
  config.layers = 32;
  config.query_heads = 32;
  config.kv_heads = 8;
  config.head_dim = 128;
  config.context = 1 << 20;  // as long as measurements like
  config.norm_epsilon = 1e-5;
  config.rope_theta = 500000;
  return config;
}

}  // namespace kvq
