// What others may read of a forward pass while it runs.
#pragma once

namespace kvq {

// Rows are counted through the tokens of one Engine::forward(), chunks in order; a call shows rows
// [first_row, first_row + rows). Pointers are valid during the call.
class PassTap {
 public:
  virtual ~PassTap() = default;

  // What a layer reads.
  //   hidden  [rows, hidden]
  virtual void layer_input(int layer, int first_row, int rows, const float* hidden) = 0;

  // What its attention works on, after RoPE.
  //   query       [rows, query_heads, head_dim]
  //   key, value  [rows, kv_heads, head_dim]
  virtual void layer_heads(int layer, int first_row, int rows, const float* query, const float* key,
                           const float* value) = 0;
};

}  // namespace kvq
