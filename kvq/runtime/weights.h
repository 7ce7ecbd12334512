// A model's weights on a device.
#pragma once

#include <functional>
#include <memory>
#include <string_view>
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
  std::unique_ptr<EmbeddingTable> embedding;
  std::vector<LayerWeights> layers;
  DeviceFloats final_norm;  // [hidden]
  std::unique_ptr<Matrix> output;
};

// The tensor of a name and shape, in memory that outlives the weights.
using TensorSource =
    std::function<Result<TensorRef>(std::string_view, const std::vector<std::int64_t>&)>;

Result<ModelWeights> load_weights(const ModelConfig& config, const TensorSource& source, Ops& ops);

}  // namespace kvq
