#include "kvq/runtime/cuda/cuda_matrix.h"

#include <vector>

#include "kvq/base/half.h"
#include "kvq/runtime/cuda/row_kernels.h"

namespace kvq::cuda {
namespace {

constexpr float kRandomDeviation = 0.02F;  // of the weights that transformers starts with

// Products and the operations around them read pieces of 16 bytes.
constexpr int kInputMultiple = 8;

}  // namespace

NumberType number_type(DataType type) {
  switch (type) {
    case DataType::kFloat32:
      return NumberType::kFloat32;
    case DataType::kFloat16:
      return NumberType::kFloat16;
    case DataType::kBFloat16:
      break;
  }
  return NumberType::kBFloat16;
}

Status Uploader::copy_bytes(const void* from, std::size_t bytes, std::byte* to) {
  KVQ_RETURN_IF_ERROR(
      check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, stream_), "weights"));
  return check(cudaStreamSynchronize(stream_), "weights");
}

Status Uploader::copy(const TensorRef& tensor, DataType type, std::byte* to) {
  const auto count = static_cast<std::size_t>(tensor.elements());
  const std::size_t bytes = count * static_cast<std::size_t>(bytes_of(type));
  if (tensor.data == nullptr) {
    return check(
        fill_random(number_type(type), to, count, kRandomDeviation, ++seed_ << 40U, stream_),
        "weights");
  }
  if (tensor.type == type) return copy_bytes(tensor.data, bytes, to);
  std::vector<float> numbers(count);
  read_floats(tensor, numbers.data());
  if (type == DataType::kFloat32) return copy_bytes(numbers.data(), bytes, to);
  std::vector<BFloat16> narrow(count);
  for (std::size_t i = 0; i < count; ++i) narrow[i] = to_bfloat16(numbers[i]);
  return copy_bytes(narrow.data(), bytes, to);
}

Result<std::unique_ptr<Matrix>> Uploader::matrix(std::span<const MatrixPart> parts, DataType type) {
  const std::int64_t inputs = parts.front().weight.shape[1];
  std::int64_t outputs = 0;
  bool any_bias = false;
  for (const MatrixPart& part : parts) {
    outputs += part.weight.shape[0];
    any_bias = any_bias || part.bias.has_value();
  }
  if (inputs % kInputMultiple != 0) {
    return fail("--device cuda: a matrix of {} x {}: expected inputs in multiples of {}", outputs,
                inputs, kInputMultiple);
  }
  auto matrix = std::make_unique<CudaMatrix>(static_cast<int>(outputs), static_cast<int>(inputs));
  const auto row_bytes = static_cast<std::size_t>(inputs * bytes_of(type));
  KVQ_RETURN_IF_ERROR(matrix->weights.reserve(static_cast<std::size_t>(outputs) * row_bytes));
  if (any_bias) {
    std::vector<float> bias(static_cast<std::size_t>(outputs));
    float* to = bias.data();
    for (const MatrixPart& part : parts) {
      if (part.bias) read_floats(*part.bias, to);
      to += part.weight.shape[0];
    }
    KVQ_RETURN_IF_ERROR(matrix->bias.reserve(bias.size() * sizeof(float)));
    KVQ_RETURN_IF_ERROR(
        copy_bytes(bias.data(), bias.size() * sizeof(float), matrix->bias.as<std::byte>()));
  }
  std::byte* to = matrix->weights.as<std::byte>();
  for (const MatrixPart& part : parts) {
    KVQ_RETURN_IF_ERROR(copy(part.weight, type, to));
    to += static_cast<std::size_t>(part.weight.shape[0]) * row_bytes;
  }
  return matrix;
}

Result<std::unique_ptr<EmbeddingTable>> Uploader::table(const TensorRef& tensor) {
  auto table = std::make_unique<CudaTable>();
  table->type = number_type(tensor.type);
  table->width = static_cast<int>(tensor.shape[1]);
  KVQ_RETURN_IF_ERROR(table->rows.reserve(static_cast<std::size_t>(tensor.elements()) *
                                          static_cast<std::size_t>(bytes_of(tensor.type))));
  KVQ_RETURN_IF_ERROR(copy(tensor, tensor.type, table->rows.as<std::byte>()));
  return table;
}

}  // namespace kvq::cuda
