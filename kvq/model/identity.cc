#include "kvq/model/identity.h"

#include "kvq/base/checksum.h"
#include "kvq/model/projection.h"

namespace kvq {

Result<std::string> model_identity(const ModelConfig& config, const Checkpoint& checkpoint) {
  const auto hidden = static_cast<std::size_t>(config.hidden);
  std::string content =
      fmt::format("{} vocabulary {} hidden {} intermediate {} layers {} heads {} {} of {}\n",
                  config.model_type, config.vocabulary, config.hidden, config.intermediate,
                  config.layers, config.query_heads, config.kv_heads, config.head_dim);
  std::vector<float> row(hidden);
  for (int layer = 0; layer < config.layers; ++layer) {
    for (const auto projection : {key_projection, value_projection}) {
      KVQ_ASSIGN_OR_RETURN(TensorRef weight, projection(config, checkpoint, layer));
      weight.shape = {1, config.hidden};
      read_floats(weight, row.data());
      content.append(reinterpret_cast<const char*>(row.data()), hidden * sizeof(float));
    }
  }
  return fmt::format("{:016x}", checksum(std::as_bytes(std::span(content))));
}

}  // namespace kvq
