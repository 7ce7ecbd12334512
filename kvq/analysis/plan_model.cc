#include "kvq/analysis/plan_model.h"

#include "kvq/model/checkpoint.h"
#include "kvq/model/identity.h"

namespace kvq {

Result<PlanModel> plan_model(const ModelConfig& config, const std::filesystem::path& directory) {
  KVQ_ASSIGN_OR_RETURN(const Checkpoint checkpoint, Checkpoint::open(directory));
  PlanModel model{.identity = "",
                  .layers = config.layers,
                  .kv_heads = config.kv_heads,
                  .head_dim = config.head_dim};
  KVQ_ASSIGN_OR_RETURN(model.identity, model_identity(config, checkpoint));
  return model;
}

}  // namespace kvq
