#include "kvq/runtime/weights.h"

#include <string_view>

#include "kvq/model/architecture.h"

namespace kvq {
namespace {

// A module of the checkpoint that is part of a Matrix.
struct Projection {
  std::string_view module;
  std::int64_t outputs;
};

class Loader {
 public:
  Loader(const TensorSource& source, Ops& ops) : source_(source), ops_(ops) {}

  Result<DeviceFloats> vector(std::string_view module, int layer, std::int64_t size) {
    KVQ_ASSIGN_OR_RETURN(const TensorRef tensor, source_(weight_name(module, layer), {size}));
    return ops_.upload(tensor);
  }

  Result<std::unique_ptr<Matrix>> matrix(std::initializer_list<Projection> projections, int layer,
                                         std::int64_t inputs, bool bias) {
    std::vector<MatrixPart> parts;
    for (const Projection& projection : projections) {
      MatrixPart& part = parts.emplace_back();
      KVQ_ASSIGN_OR_RETURN(part.weight, source_(weight_name(projection.module, layer),
                                                {projection.outputs, inputs}));
      if (bias) {
        KVQ_ASSIGN_OR_RETURN(part.bias,
                             source_(bias_name(projection.module, layer), {projection.outputs}));
      }
    }
    return ops_.prepare(parts);
  }

 private:
  const TensorSource& source_;
  Ops& ops_;
};

Result<LayerWeights> load_layer(const ModelConfig& config, int layer, Loader& loader) {
  const ModuleNames& names = info(config.architecture).modules;
  const std::int64_t query_width = std::int64_t{config.query_heads} * config.head_dim;
  const std::int64_t kv_width = std::int64_t{config.kv_heads} * config.head_dim;
  LayerWeights weights;
  KVQ_ASSIGN_OR_RETURN(weights.attention_norm,
                       loader.vector(names.attention_norm, layer, config.hidden));
  if (config.qk_norm) {
    KVQ_ASSIGN_OR_RETURN(weights.query_norm,
                         loader.vector(names.query_norm, layer, config.head_dim));
    KVQ_ASSIGN_OR_RETURN(weights.key_norm, loader.vector(names.key_norm, layer, config.head_dim));
  }
  KVQ_ASSIGN_OR_RETURN(
      weights.query_key_value,
      loader.matrix({{names.query, query_width}, {names.key, kv_width}, {names.value, kv_width}},
                    layer, config.hidden, config.attention_bias));
  KVQ_ASSIGN_OR_RETURN(weights.attention_output,
                       loader.matrix({{names.attention_output, config.hidden}}, layer, query_width,
                                     config.attention_bias));
  KVQ_ASSIGN_OR_RETURN(weights.mlp_norm, loader.vector(names.mlp_norm, layer, config.hidden));
  KVQ_ASSIGN_OR_RETURN(weights.gate_up, loader.matrix({{names.gate, config.intermediate},
                                                       {names.up, config.intermediate}},
                                                      layer, config.hidden, config.mlp_bias));
  KVQ_ASSIGN_OR_RETURN(weights.down, loader.matrix({{names.down, config.hidden}}, layer,
                                                   config.intermediate, config.mlp_bias));
  return weights;
}

}  // namespace

Result<ModelWeights> load_weights(const ModelConfig& config, const TensorSource& source, Ops& ops) {
  const ModuleNames& names = info(config.architecture).modules;
  Loader loader(source, ops);
  ModelWeights weights;
  KVQ_ASSIGN_OR_RETURN(const TensorRef embedding,
                       source(weight_name(names.embedding), {config.vocabulary, config.hidden}));
  KVQ_ASSIGN_OR_RETURN(weights.embedding, ops.prepare_table(embedding));
  for (int layer = 0; layer < config.layers; ++layer) {
    KVQ_ASSIGN_OR_RETURN(weights.layers.emplace_back(), load_layer(config, layer, loader));
  }
  KVQ_ASSIGN_OR_RETURN(weights.final_norm, loader.vector(names.final_norm, 0, config.hidden));
  const std::string_view output = config.tied_embeddings ? names.embedding : names.output;
  KVQ_ASSIGN_OR_RETURN(weights.output,
                       loader.matrix({{output, config.vocabulary}}, 0, config.hidden, false));
  return weights;
}

}  // namespace kvq
