#include "kvq/model/architecture.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>

namespace kvq {
namespace {

constexpr ModuleNames kLlamaModules = {
    .embedding = "model.embed_tokens",
    .attention_norm = "model.layers.{}.input_layernorm",
    .query = "model.layers.{}.self_attn.q_proj",
    .key = "model.layers.{}.self_attn.k_proj",
    .value = "model.layers.{}.self_attn.v_proj",
    .attention_output = "model.layers.{}.self_attn.o_proj",
    .query_norm = "model.layers.{}.self_attn.q_norm",
    .key_norm = "model.layers.{}.self_attn.k_norm",
    .mlp_norm = "model.layers.{}.post_attention_layernorm",
    .gate = "model.layers.{}.mlp.gate_proj",
    .up = "model.layers.{}.mlp.up_proj",
    .down = "model.layers.{}.mlp.down_proj",
    .final_norm = "model.norm",
    .output = "lm_head",
};

constexpr std::array kArchitectures = {
    ArchitectureInfo{.architecture = Architecture::kLlama,
                     .model_type = "llama",
                     .class_name = "LlamaForCausalLM",
                     .qk_norm = false,
                     .derives_head_shape = true,
                     .has_mlp_bias = true,
                     .modules = kLlamaModules},
    ArchitectureInfo{.architecture = Architecture::kQwen3,
                     .model_type = "qwen3",
                     .class_name = "Qwen3ForCausalLM",
                     .qk_norm = true,
                     .derives_head_shape = false,
                     .has_mlp_bias = false,
                     .modules = kLlamaModules},
};

}  // namespace

std::span<const ArchitectureInfo> architectures() { return kArchitectures; }

const ArchitectureInfo& info(Architecture architecture) {
  return *std::ranges::find(kArchitectures, architecture, &ArchitectureInfo::architecture);
}

std::string weight_name(std::string_view module, int layer) {
  return fmt::format(fmt::runtime(module), layer) + ".weight";
}

std::string bias_name(std::string_view module, int layer) {
  return fmt::format(fmt::runtime(module), layer) + ".bias";
}

}  // namespace kvq
