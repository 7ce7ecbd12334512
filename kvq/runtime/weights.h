// A model's weights on a device.
#pragma once

#include <memory>
#include <vector>

#include "kvq/base/status.h"
#include "kvq/model/checkpoint.h"
#include "kvq/model/config.h"
#include "kvq/runtime/ops.h"

namespace kvq {

struct LayerWeights {
  DeviceFloats attention_norm;  // [hidden]
  DeviceFloats query_norm;      // [head_dim], null where the model has none
  DeviceFloats key_norm;        // likewise
  std::unique_ptr<Matrix> query_key_value;
  std::unique_ptr<Matrix> attention_output;
  DeviceFloats mlp_norm;  // [hidden]
  std::unique_ptr<Matrix> gate_up;
  std::unique_ptr<Matrix> down;
};

struct ModelWeights {
  TensorRef embedding;  // [vocabulary, hidden], in the checkpoint
  std::vector<LayerWeights> layers;
  DeviceFloats final_norm;  // [hidden]
  std::unique_ptr<Matrix> output;
};

// `checkpoint` outlives the result. Missing tensors and wrong shapes are errors.
Result<ModelWeights> load_weights(const ModelConfig& config, const Checkpoint& checkpoint,
                                  Ops& ops);

}  // namespace kvq
