#include "kvq/model/projection.h"

#include "kvq/model/architecture.h"

namespace kvq {
namespace {

std::vector<std::int64_t> shape(const ModelConfig& config) {
  return {std::int64_t{config.kv_heads} * config.head_dim, config.hidden};
}

}  // namespace

Result<TensorRef> key_projection(const ModelConfig& config, const Checkpoint& checkpoint,
                                 int layer) {
  const ModuleNames& names = info(config.architecture).modules;
  return checkpoint.tensor(weight_name(names.key, layer), shape(config));
}

Result<TensorRef> value_projection(const ModelConfig& config, const Checkpoint& checkpoint,
                                   int layer) {
  const ModuleNames& names = info(config.architecture).modules;
  return checkpoint.tensor(weight_name(names.value, layer), shape(config));
}

}  // namespace kvq
