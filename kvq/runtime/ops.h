// What a forward pass asks of a device. Numbers are float32 rows in the memory of the device;
// every pointer named "device" below comes from allocate() or points inside such an array.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "kvq/base/status.h"
#include "kvq/model/checkpoint.h"

namespace kvq {

// Weights W [outputs, inputs] of y = W x + bias, in the form that the device multiplies.
class Matrix {
 public:
  virtual ~Matrix() = default;
  int outputs() const { return outputs_; }
  int inputs() const { return inputs_; }

 protected:
  Matrix(int outputs, int inputs) : outputs_(outputs), inputs_(inputs) {}

 private:
  int outputs_;
  int inputs_;
};

// One of the matrices that are stacked along their outputs into a Matrix.
struct MatrixPart {
  TensorRef weight;               // [outputs, inputs]
  std::optional<TensorRef> bias;  // [outputs]
};

// Rows that tokens stand for, in the form that the device looks up.
class EmbeddingTable {
 public:
  virtual ~EmbeddingTable() = default;
};

using DeviceFloats = std::shared_ptr<float>;

// What an operation's launch parameters depend on: a recording stands for equal keys only.
using RecordingKey = std::vector<std::uintptr_t>;

// How fused rows of q, k and v become heads.
struct HeadShape {
  int query_heads = 0;
  int kv_heads = 0;
  int head_dim = 0;
  const float* query_norm = nullptr;  // device [head_dim], null for none: RMS norm before rotation
  const float* key_norm = nullptr;    // device [head_dim], null for none
  float norm_epsilon = 0;
};

// Rows of the pass after split_heads().
struct HeadRows {
  float* query;  // device [rows, query_heads, head_dim]
  float* key;    // device [rows, kv_heads, head_dim]
  float* value;  // device [rows, kv_heads, head_dim]
};

class Ops {
 public:
  virtual ~Ops() = default;

  // The type of the weights in matrix products: "float32" or "bfloat16".
  virtual std::string compute_name() const = 0;

  // Memory for at least `count` numbers, not initialized.
  virtual Result<DeviceFloats> allocate(std::size_t count) = 0;
  // The tensor as float32, in device memory.
  virtual Result<DeviceFloats> upload(const TensorRef& tensor) = 0;
  // Parts are not empty and have the same number of inputs. The result must not outlive the Ops.
  virtual Result<std::unique_ptr<Matrix>> prepare(std::span<const MatrixPart> parts) = 0;
  // `table`: [vocabulary, hidden]. Where the device's memory is the host's, it stays in the
  // checkpoint.
  virtual Result<std::unique_ptr<EmbeddingTable>> prepare_table(const TensorRef& table) = 0;

  // output[r] = table[tokens[r]].
  //   output  device [tokens.size(), hidden]
  virtual void embed(const EmbeddingTable& table, std::span<const int> tokens, float* output) = 0;

  // The angles of rotary embedding, position * frequency in float32 as transformers computes them.
  //   frequencies   [head_dim / 2]
  //   cosine, sine  device [positions.size(), head_dim / 2]
  virtual void rotary_table(std::span<const std::int64_t> positions,
                            std::span<const float> frequencies, float* cosine, float* sine) = 0;

  // Every row divided by its root mean square, times weight. Returns false if a sum of a row's
  // squares is not finite; a device that runs behind its caller returns true and reports `check`,
  // a small number that tells the calls of a pass apart, from finish().
  //   input, output  device [rows, width]
  //   weight         device [width]
  virtual bool rms_norm(const float* input, const float* weight, float epsilon, int rows, int width,
                        int check, float* output) = 0;

  // output = matrix input + bias (+ output, where `accumulate`).
  //   input   device [rows, inputs]
  //   output  device [rows, outputs]
  virtual Status multiply(const Matrix& matrix, const float* input, int rows, bool accumulate,
                          float* output) = 0;

  // Splits fused rows, normalizes (where the shape says so) and rotates queries and keys. What is
  // in `fused` afterwards is undefined.
  //   fused         device [rows, (query_heads + 2 kv_heads) * head_dim]: q heads, k heads, v heads
  //   cosine, sine  device [rows, head_dim / 2]
  virtual void split_heads(const HeadShape& shape, const float* fused, const float* cosine,
                           const float* sine, int rows, const HeadRows& output) = 0;

  // output = silu(gate) * up. What is in `fused` afterwards is undefined.
  //   fused   device [rows, 2 * width]: gate, up
  //   output  device [rows, width]
  virtual void silu_multiply(const float* fused, int rows, int width, float* output) = 0;

  // output[i] = input[rows[i]].
  //   input   device [*, width]
  //   output  device [rows.size(), width], does not overlap the input
  virtual void gather_rows(const float* input, std::span<const int> rows, int width,
                           float* output) = 0;

  // Whether no number of values, device [count], is infinite or NaN; `check` as in rms_norm().
  virtual bool all_finite(const float* values, std::size_t count, int check) = 0;

  // Index of the first of the largest numbers of each row of values, device [rows, width]. Valid
  // until the next call.
  virtual std::span<const int> largest(const float* values, int rows, int width) = 0;

  // Waits for all work. Returns the lowest of the checks that failed since the last call, if any.
  virtual Result<std::optional<int>> finish() = 0;

  // Runs `body`, which calls operations and does nothing else; a device may record it and replay
  // the recording when the same key comes again.
  virtual Status run(const RecordingKey& key, const std::function<Status()>& body) = 0;

  // Copies source [count], the caller's memory, to output, device [count].
  virtual void from_host(const float* source, std::size_t count, float* output) = 0;

  // Makes values, device [count], readable by the caller: a pointer to them or to a copy.
  virtual const float* to_host(const float* values, std::size_t count) = 0;
};

}  // namespace kvq
