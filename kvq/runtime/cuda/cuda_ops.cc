#include "kvq/runtime/cuda/cuda_ops.h"

#include <algorithm>
#include <limits>
#include <map>
#include <unordered_map>
#include <utility>

#include "kvq/runtime/cuda/cublas_lt.h"
#include "kvq/runtime/cuda/cuda_matrix.h"
#include "kvq/runtime/cuda/recordings.h"
#include "kvq/runtime/cuda/row_kernels.h"

namespace kvq::cuda {
namespace {

constexpr std::int32_t kNoCheck = std::numeric_limits<std::int32_t>::max();

// The largest power of two up to 256 that divides the address.
int alignment_of(const void* address) {
  const auto bits = reinterpret_cast<std::uintptr_t>(address) | 256U;
  return static_cast<int>(bits & (~bits + 1));
}

class CudaOps final : public Ops {
 public:
  CudaOps(std::shared_ptr<Device> device, std::unique_ptr<CublasLt> products, InputTerms terms)
      : device_(std::move(device)),
        products_(std::move(products)),
        recordings_(device_),
        uploader_(device_->stream()),
        terms_(terms) {}

  Status initialize() {
    KVQ_RETURN_IF_ERROR(failed_.reserve(sizeof(std::int32_t)));
    KVQ_RETURN_IF_ERROR(found_.reserve(sizeof(std::int32_t)));
    return clear_failed();
  }

  std::string compute_name() const override { return bfloat16() ? "bfloat16" : "float32"; }

  Result<DeviceFloats> allocate(std::size_t count) override {
    recordings_.clear();
    auto memory = std::make_shared<DeviceArray>();
    KVQ_RETURN_IF_ERROR(memory->reserve(count * sizeof(float)));
    return DeviceFloats(memory, memory->as<float>());
  }

  Result<DeviceFloats> upload(const TensorRef& tensor) override {
    const auto count = static_cast<std::size_t>(tensor.elements());
    KVQ_ASSIGN_OR_RETURN(DeviceFloats values, allocate(count));
    if (tensor.data == nullptr) {  // norms, which start as ones
      const std::vector<float> ones(count, 1.0F);
      from_host(ones.data(), count, values.get());
      return values;
    }
    KVQ_RETURN_IF_ERROR(
        uploader_.copy(tensor, DataType::kFloat32, reinterpret_cast<std::byte*>(values.get())));
    return values;
  }

  Result<std::unique_ptr<Matrix>> prepare(std::span<const MatrixPart> parts) override {
    return uploader_.matrix(parts, bfloat16() ? DataType::kBFloat16 : DataType::kFloat32);
  }

  Result<std::unique_ptr<EmbeddingTable>> prepare_table(const TensorRef& table) override {
    return uploader_.table(table);
  }

  void embed(const EmbeddingTable& embedding, std::span<const int> tokens, float* output) override {
    const auto& table = static_cast<const CudaTable&>(embedding);
    flush();
    gather(table.type, table.rows.as<void>(), tokens, table.width, output);
  }

  void rotary_table(std::span<const std::int64_t> positions, std::span<const float> frequencies,
                    float* cosine, float* sine) override {
    const std::size_t position_bytes = positions.size_bytes();
    note(reserve(angles_, position_bytes + frequencies.size_bytes()));
    std::byte* const at = angles_.as<std::byte>();
    copy_in(positions.data(), position_bytes, at);
    copy_in(frequencies.data(), frequencies.size_bytes(), at + position_bytes);
    note(cuda::rotary_table(reinterpret_cast<std::int64_t*>(at),
                            reinterpret_cast<float*>(at + position_bytes),
                            static_cast<int>(positions.size()),
                            static_cast<int>(frequencies.size()), cosine, sine, stream()));
  }

  bool rms_norm(const float* input, const float* weight, float epsilon, int rows, int width,
                int check_number, float* output) override {
    RmsNormCall call{.input = const_cast<float*>(input),  // written where a product is pending
                     .added = {},
                     .accumulate = false,
                     .weight = weight,
                     .output = output,
                     .split = split_for(output, rows, width),
                     .epsilon = epsilon,
                     .rows = rows,
                     .width = width,
                     .check = check_number,
                     .failed = failed_.as<std::int32_t>()};
    if (pending_.is(input, rows, width)) {
      call.added = pending_.product;
      call.accumulate = pending_.accumulate;
      pending_ = {};
    }
    flush();
    note(cuda::rms_norm(call, stream()));
    return true;
  }

  Status multiply(const Matrix& weights, const float* input, int rows, bool accumulate,
                  float* output) override {
    flush();
    const auto& matrix = static_cast<const CudaMatrix&>(weights);
    const bool two = terms_ == InputTerms::kTwo;
    Product product{.bfloat16 = bfloat16(),
                    .rows = two ? 2 * rows : rows,
                    .inputs = matrix.inputs(),
                    .outputs = matrix.outputs(),
                    .accumulate = accumulate && !two};
    const void* operand = input;
    if (bfloat16()) {
      if (split_of_ != input || split_count_ != std::size_t(rows) * matrix.inputs()) {
        const SplitRows split = split_for(input, rows, matrix.inputs());
        note(split_rows(input, split_count_, split, stream()));
        split_of_ = nullptr;  // others than operations write these rows
      }
      operand = split_.as<void>();
    }
    float* result = output;
    if (two) {
      const std::size_t count = std::size_t(product.rows) * product.outputs;
      KVQ_RETURN_IF_ERROR(reserve(product_, count * sizeof(float)));
      result = product_.as<float>();
    }
    product.output_alignment = alignment_of(result);
    KVQ_RETURN_IF_ERROR(products_->multiply(product, matrix.weights.as<void>(), operand, result));
    if (split_of_ == output) split_of_ = nullptr;
    const float* bias = matrix.bias.as<float>();
    if (two) {
      const float* low = result + std::size_t(rows) * product.outputs;
      pending_ = {{result, low, bias}, output, rows, product.outputs, accumulate};
    } else if (bias != nullptr) {
      note(finish_product({.product = {nullptr, nullptr, bias},
                           .output = output,
                           .rows = rows,
                           .width = product.outputs,
                           .accumulate = true},
                          stream()));
    }
    return status_;
  }

  void split_heads(const HeadShape& shape, const float* fused, const float* cosine,
                   const float* sine, int rows, const HeadRows& output) override {
    const int width = (shape.query_heads + 2 * shape.kv_heads) * shape.head_dim;
    note(cuda::split_heads({.fused = take(fused, rows, width),
                            .cosine = cosine,
                            .sine = sine,
                            .query_norm = shape.query_norm,
                            .key_norm = shape.key_norm,
                            .query = output.query,
                            .key = output.key,
                            .value = output.value,
                            .norm_epsilon = shape.norm_epsilon,
                            .rows = rows,
                            .query_heads = shape.query_heads,
                            .kv_heads = shape.kv_heads,
                            .head_dim = shape.head_dim},
                           stream()));
  }

  void silu_multiply(const float* fused, int rows, int width, float* output) override {
    note(cuda::silu_multiply({.fused = take(fused, rows, 2 * width),
                              .output = output,
                              .split = split_for(output, rows, width),
                              .rows = rows,
                              .width = width},
                             stream()));
  }

  void gather_rows(const float* input, std::span<const int> rows, int width,
                   float* output) override {
    flush();
    gather(NumberType::kFloat32, input, rows, width, output);
  }

  bool all_finite(const float* values, std::size_t count, int check_number) override {
    flush();
    note(cuda::all_finite(values, count, check_number, failed_.as<std::int32_t>(), stream()));
    return true;
  }

  std::span<const int> largest(const float* values, int rows, int width) override {
    const std::size_t bytes = static_cast<std::size_t>(rows) * sizeof(std::int32_t);
    note(reserve(indices_, bytes));
    note(largest_.reserve(bytes));
    flush();
    note(cuda::largest(values, rows, width, indices_.as<std::int32_t>(), stream()));
    copy_out(indices_.as<void>(), bytes, largest_.as<void>());
    note(device_->synchronize());
    return {largest_.as<std::int32_t>(), static_cast<std::size_t>(rows)};
  }

  Result<std::optional<int>> finish() override {
    flush();
    copy_out(failed_.as<void>(), sizeof(std::int32_t), found_.as<void>());
    note(device_->synchronize());
    if (!status_) return tl::unexpected(std::exchange(status_, {}).error());
    const std::int32_t found = *found_.as<std::int32_t>();
    if (found == kNoCheck) return std::nullopt;
    KVQ_RETURN_IF_ERROR(clear_failed());
    return found;
  }

  Status run(const RecordingKey& key, const std::function<Status()>& body) override {
    flush();
    split_of_ = nullptr;  // a replay leaves other rows
    return recordings_.run(key, [&] {
      Status status = body();
      flush();
      return status;
    });
  }

  void from_host(const float* source, std::size_t count, float* output) override {
    flush();
    copy_in(source, count * sizeof(float), reinterpret_cast<std::byte*>(output));
    note(device_->synchronize());
    if (split_of_ == output) split_of_ = nullptr;
  }

  const float* to_host(const float* values, std::size_t count) override {
    flush();
    PinnedArray& copy = host_copies_[values];
    note(copy.reserve(count * sizeof(float)));
    copy_out(values, count * sizeof(float), copy.as<void>());
    note(device_->synchronize());
    return copy.as<float>();
  }

 private:
  bool bfloat16() const { return terms_ != InputTerms::kFloat32; }
  cudaStream_t stream() const { return device_->stream(); }

  // The first error of calls that return none; told by the next that does.
  void note(Status status) {
    if (status_ && !status) status_ = std::move(status);
  }
  void note(cudaError_t error) {
    if (error != cudaSuccess) note(check(error, "launch"));
  }

  // The result of a product whose terms have not been added up yet: the
  // operation that reads it next does that by the way.
  struct Pending {
    ProductTerms product;
    const float* output = nullptr;
    int rows = 0;
    int width = 0;
    bool accumulate = false;
    bool is(const float* values, int value_rows, int value_width) const {
      return output != nullptr && output == values && rows == value_rows && width == value_width;
    }
  };
  void flush() {
    if (pending_.output == nullptr) return;
    note(finish_product({.product = pending_.product,
                         .output = const_cast<float*>(pending_.output),
                         .rows = pending_.rows,
                         .width = pending_.width,
                         .accumulate = pending_.accumulate},
                        stream()));
    pending_ = {};
  }
  // Rows that are used up: their terms, if they are pending.
  ProductTerms take(const float* fused, int rows, int width) {
    if (!pending_.is(fused, rows, width) || pending_.accumulate) {
      flush();
      return {fused, nullptr, nullptr};
    }
    return std::exchange(pending_, {}).product;
  }

  // Memory that recordings point to.
  Status reserve(DeviceArray& array, std::size_t bytes) {
    if (bytes > array.bytes()) recordings_.clear();
    return array.reserve(bytes);
  }

  // Where the split rows of `values` go, for the product that reads these next.
  SplitRows split_for(const float* values, int rows, int width) {
    if (!bfloat16()) return {};
    const int terms = terms_ == InputTerms::kTwo ? 2 : 1;
    split_of_ = values;
    split_count_ = std::size_t(rows) * width;
    note(reserve(split_, split_count_ * terms * sizeof(__nv_bfloat16)));
    return {split_.as<__nv_bfloat16>(), terms};
  }

  void gather(NumberType type, const void* table, std::span<const int> rows, int width,
              float* output) {
    note(reserve(indices_, rows.size_bytes()));
    copy_in(rows.data(), rows.size_bytes(), indices_.as<std::byte>());
    note(cuda::gather_rows(type, table, indices_.as<std::int32_t>(), static_cast<int>(rows.size()),
                           width, output, stream()));
    if (split_of_ == output) split_of_ = nullptr;
  }

  void copy_in(const void* from, std::size_t bytes, std::byte* to) {
    note(check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, stream()), "copy"));
  }
  void copy_out(const void* from, std::size_t bytes, void* to) {
    note(check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, stream()), "copy"));
  }

  Status clear_failed() {
    *found_.as<std::int32_t>() = kNoCheck;
    KVQ_RETURN_IF_ERROR(
        check(cudaMemcpyAsync(failed_.as<void>(), found_.as<void>(), sizeof(std::int32_t),
                              cudaMemcpyHostToDevice, stream()),
              "copy"));
    return device_->synchronize();
  }

  std::shared_ptr<Device> device_;
  std::unique_ptr<CublasLt> products_;
  Recordings recordings_;
  Uploader uploader_;
  InputTerms terms_;
  Status status_;

  DeviceArray failed_;  // the lowest check that failed, int32
  PinnedArray found_;   // its copy
  DeviceArray indices_;
  PinnedArray largest_;
  DeviceArray angles_;  // positions, frequencies
  Pending pending_;
  DeviceArray product_;              // [terms, rows, outputs]
  DeviceArray split_;                // [terms, rows, width]
  const float* split_of_ = nullptr;  // the rows that were split last, null if they changed
  std::size_t split_count_ = 0;      // numbers of one term
  std::unordered_map<const float*, PinnedArray> host_copies_;
};

}  // namespace

Result<std::unique_ptr<Ops>> create_cuda_ops(std::shared_ptr<Device> device, InputTerms terms) {
  KVQ_ASSIGN_OR_RETURN(auto products, CublasLt::open(device));
  auto ops = std::make_unique<CudaOps>(std::move(device), std::move(products), terms);
  KVQ_RETURN_IF_ERROR(ops->initialize());
  return ops;
}

}  // namespace kvq::cuda
