// Matrix products by oneDNN, split over our own threads.
//
// A matrix is cut into slices of output columns, each packed once into the layout that oneDNN
// prefers. The input rows are cut into tiles of up to 64. One task multiplies one tile by one
// slice, on one thread, so oneDNN's own threads stay out of the way of ours:
//
//              slice 0   slice 1   slice 2          weights [inputs, outputs]
//   tile 0  |  task 0  | task 2  | task 4  |        rows of a last, shorter tile are padded up to
//   tile 1  |  task 1  | task 3  | task 5  |        one of a few sizes: a primitive for each
//
// bfloat16: weights are bf16; every input row x is split into two bf16 rows, x = high + low to 16
// significant bits, and a tile is multiplied as [high rows; low rows]. The sum of the two products,
// accumulated in float32, is nearly the float32 product: a decode step reads half the bytes, and a
// prompt costs the same, as bf16 products run at twice the speed.
#pragma once

#include <map>
#include <memory>
#include <oneapi/dnnl/dnnl.hpp>
#include <span>
#include <unordered_map>
#include <utility>
#include <vector>

#include "kvq/base/thread_pool.h"
#include "kvq/runtime/cpu/aligned_buffer.h"
#include "kvq/runtime/cpu/row_kernels.h"
#include "kvq/runtime/cpu/weight_arena.h"
#include "kvq/runtime/ops.h"

namespace kvq {

class Multiplier {
 public:
  // `bfloat16`: the type of the weights; float32 otherwise. `kernels` and `threads` outlive it.
  static Result<std::unique_ptr<Multiplier>> create(bool bfloat16, const RowKernels& kernels,
                                                    ThreadPool& threads);

  bool bfloat16() const { return bfloat16_; }

  // Parts are stacked along their outputs. The multiplier outlives the result.
  Result<std::unique_ptr<Matrix>> prepare(std::span<const MatrixPart> parts);

  // output = matrix input + bias (+ output, where `accumulate`).
  //   matrix  made by prepare()
  //   input   [rows, inputs]
  //   output  [rows, outputs]
  Status multiply(const Matrix& matrix, const float* input, int rows, bool accumulate,
                  float* output);

 private:
  // Of one primitive.
  struct Shape {
    int rows;  // both terms counted
    int inputs;
    int outputs;
    auto operator<=>(const Shape&) const =
        default;  // NOLINT(modernize-use-nullptr): not written here
  };
  // A primitive and each worker's arguments for it.
  struct Product {
    dnnl::matmul primitive;
    std::vector<std::unordered_map<int, dnnl::memory>> arguments;
  };
  struct Worker {
    dnnl::stream stream;
    AlignedBuffer scratchpad;  // oneDNN's
    AlignedBuffer result;      // float32 [terms, tile rows, slice columns]
  };
  // One call of multiply().
  struct Call;

  Multiplier(bool bfloat16, const RowKernels& kernels, ThreadPool& threads);

  int terms() const { return bfloat16_ ? 2 : 1; }
  dnnl::memory::data_type type() const;
  dnnl::matmul::primitive_desc describe(const Shape& shape,
                                        const dnnl::memory::desc& weights) const;
  const dnnl::memory::desc& weights_layout(int inputs, int outputs);
  Product& product(const Shape& shape);
  void reserve_products(const Call& call);
  void pack_tile(const Call& call, int tile);
  void run_task(const Call& call, int slice, int tile, int worker);

  bool bfloat16_;
  const RowKernels& kernels_;
  ThreadPool& threads_;
  dnnl::engine engine_;
  WeightArena arena_;
  std::vector<Worker> workers_;
  std::map<std::pair<int, int>, dnnl::memory::desc> layouts_;  // by inputs, outputs of a slice
  std::map<Shape, Product> products_;
  AlignedBuffer input_;  // tiles in order, each [terms, rows, inputs] in the weights' type
};

}  // namespace kvq
