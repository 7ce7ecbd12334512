// One pass of a transformer decoder over a batch of token rows, written once for all architectures
// and devices.
//
//   hidden = embedding of the tokens                               [rows, hidden]
//   each layer:
//     q, k, v = rotate(norm?(split(W_qkv norm(hidden))))           k, v go to the caches
//     hidden += W_o attention(q, caches)
//     hidden += W_down (silu(gate) * up),  gate, up = W_gate_up norm(hidden)
//   logits = W_output norm(hidden)                                 of the rows asked for
//
// After the last layer's keys and values are stored, only rows whose logits are wanted go on.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kvq/base/status.h"
#include "kvq/model/config.h"
#include "kvq/runtime/cached_attention.h"
#include "kvq/runtime/engine.h"
#include "kvq/runtime/ops.h"
#include "kvq/runtime/weights.h"

namespace kvq {

class ForwardPass {
 public:
  // Everything outlives it.
  ForwardPass(const ModelConfig& config, const ModelWeights& weights, Ops& ops,
              CachedAttention& attention);

  // Appends every item's tokens to its sequence. Items have different sequences, at least one token
  // and token ids below the vocabulary. On an error every sequence is as it was before.
  //   options    of the whole call, which holds the rows of this pass from `first_row` on
  //   logits     device [sum of logit_rows, vocabulary], items in order
  Status run(std::span<const PassItem> items, const PassOptions& options, int first_row,
             float* logits);

 private:
  // Device memory for `capacity` rows.
  struct Activations {
    int capacity = 0;
    DeviceFloats hidden;     // [rows, hidden]
    DeviceFloats normed;     // [rows, hidden]
    DeviceFloats wanted;     // [rows, hidden], hidden of the rows that go on
    DeviceFloats fused;      // [rows, q + k + v] or [rows, gate + up]
    DeviceFloats query;      // [rows, query_heads, head_dim]
    DeviceFloats key;        // [rows, kv_heads, head_dim]
    DeviceFloats value;      // [rows, kv_heads, head_dim]
    DeviceFloats attention;  // [rows, query_heads, head_dim]
    DeviceFloats gated;      // [rows, intermediate]
    DeviceFloats cosine;     // [rows, head_dim / 2]
    DeviceFloats sine;       // [rows, head_dim / 2]
  };

  Status begin_chunks();
  void roll_back();
  void read_inputs();
  void show_input(int layer);
  void show_heads(int layer);
  Status run_chunks(float* logits);
  Status run_layers(float* logits);
  Status project_heads(int layer);
  Status attend(int layer, bool only_wanted);
  Status feed_forward(int layer, float* hidden, int rows);
  Status norm(const float* hidden, const DeviceFloats& weight, int rows, int check);
  Error describe(int check) const;
  void list_wanted_rows();
  // Where the rows that go on behind the last layer's attention are.
  float* wanted_hidden() const;
  Status reserve(int rows);

  const ModelConfig& config_;
  const ModelWeights& weights_;
  Ops& ops_;
  CachedAttention& attention_;
  std::vector<float> frequencies_;

  // Of the running pass.
  std::span<const PassItem> items_;
  const PassOptions* options_ = nullptr;
  int first_row_ = 0;  // of the pass in the call
  int rows_ = 0;
  std::vector<std::int64_t> starts_;  // length of each item's sequence before the pass
  std::vector<int> wanted_rows_;
  Activations activations_;
  // Kept for their memory.
  std::vector<int> tokens_;
  std::vector<std::int64_t> positions_;
  RecordingKey key_;
};

}  // namespace kvq
