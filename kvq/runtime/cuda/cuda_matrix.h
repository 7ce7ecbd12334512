// Weights in the memory of a CUDA device.
#pragma once

#include <span>

#include "kvq/attention/cuda/decode_params.h"
#include "kvq/cache/cuda/device.h"
#include "kvq/runtime/ops.h"

namespace kvq::cuda {

struct CudaMatrix final : Matrix {
  CudaMatrix(int outputs, int inputs) : Matrix(outputs, inputs) {}
  DeviceArray weights;  // [outputs, inputs], float32 or bf16
  DeviceArray bias;     // float32 [outputs], empty for none
};

struct CudaTable final : EmbeddingTable {
  DeviceArray rows;  // [vocabulary, width]
  NumberType type = NumberType::kFloat32;
  int width = 0;
};

// Copies tensors to device memory in the numbers wanted, or fills it with random ones where a
// tensor has no data: of deviation 0.02, with seeds that count up.
class Uploader {
 public:
  explicit Uploader(cudaStream_t stream) : stream_(stream) {}

  // `to`: device, in numbers of `type`.
  Status copy(const TensorRef& tensor, DataType type, std::byte* to);
  // Parts are stacked along their outputs.
  Result<std::unique_ptr<Matrix>> matrix(std::span<const MatrixPart> parts, DataType type);
  Result<std::unique_ptr<EmbeddingTable>> table(const TensorRef& tensor);

 private:
  Status copy_bytes(const void* from, std::size_t bytes, std::byte* to);

  cudaStream_t stream_;
  std::uint64_t seed_ = 0;
};

NumberType number_type(DataType type);

}  // namespace kvq::cuda
