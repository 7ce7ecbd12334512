#include "kvq/runtime/cpu/cpu_ops.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <new>

#include "kvq/runtime/cpu/aligned_buffer.h"
#include "kvq/runtime/cpu/product.h"
#include "kvq/runtime/cpu/row_kernels.h"
#include "kvq/runtime/tensor_rows.h"

namespace kvq {
namespace {

// Numbers that one task of a small operation handles: enough to outweigh handing out the task.
constexpr std::ptrdiff_t kTaskNumbers = 16384;

struct CpuTable final : EmbeddingTable {
  explicit CpuTable(const TensorRef& table) : tensor(table) {}
  TensorRef tensor;  // [vocabulary, hidden]
};

class CpuOps final : public Ops {
 public:
  CpuOps(std::unique_ptr<Multiplier> multiplier, const RowKernels& kernels, ThreadPool& threads)
      : multiplier_(std::move(multiplier)), kernels_(kernels), threads_(threads) {}

  std::string compute_name() const override {
    return multiplier_->bfloat16() ? "bfloat16" : "float32";
  }

  Result<DeviceFloats> allocate(std::size_t count) override {
    try {
      auto buffer = std::make_shared<AlignedBuffer>();
      buffer->reserve(count * sizeof(float));
      return DeviceFloats(buffer, buffer->as<float>());
    } catch (const std::bad_alloc&) {
      return fail("out of memory: {} bytes for activations", count * sizeof(float));
    }
  }

  Result<DeviceFloats> upload(const TensorRef& tensor) override {
    KVQ_ASSIGN_OR_RETURN(DeviceFloats values,
                         allocate(static_cast<std::size_t>(tensor.elements())));
    read_floats(tensor, values.get());
    return values;
  }

  Result<std::unique_ptr<Matrix>> prepare(std::span<const MatrixPart> parts) override {
    return multiplier_->prepare(parts);
  }

  Result<std::unique_ptr<EmbeddingTable>> prepare_table(const TensorRef& table) override {
    return std::make_unique<CpuTable>(table);
  }

  void embed(const EmbeddingTable& embedding, std::span<const int> tokens, float* output) override {
    const TensorRef& table = static_cast<const CpuTable&>(embedding).tensor;
    const std::ptrdiff_t width = table.shape[1];
    for_rows(static_cast<int>(tokens.size()), width, [&](std::ptrdiff_t row) {
      read_floats(tensor_rows(table, tokens[static_cast<std::size_t>(row)], 1),
                  output + row * width);
    });
  }

  void rotary_table(std::span<const std::int64_t> positions, std::span<const float> frequencies,
                    float* cosine, float* sine) override {
    const auto width = static_cast<std::ptrdiff_t>(frequencies.size());
    constexpr std::ptrdiff_t kCost = 16;  // of a sine and a cosine, in numbers
    for_rows(static_cast<int>(positions.size()), width * kCost, [&](std::ptrdiff_t row) {
      const auto position = static_cast<float>(positions[static_cast<std::size_t>(row)]);
      for (std::ptrdiff_t i = 0; i < width; ++i) {
        const float angle = position * frequencies[static_cast<std::size_t>(i)];
        cosine[row * width + i] = std::cos(angle);
        sine[row * width + i] = std::sin(angle);
      }
    });
  }

  bool rms_norm(const float* input, const float* weight, float epsilon, int rows, int width,
                int /*check*/, float* output) override {
    std::atomic<bool> finite{true};
    for_rows(rows, width, [&](std::ptrdiff_t row) {
      if (!kernels_.rms_norm(input + row * width, weight, epsilon, width, output + row * width)) {
        finite.store(false, std::memory_order_relaxed);
      }
    });
    return finite;
  }

  Status multiply(const Matrix& matrix, const float* input, int rows, bool accumulate,
                  float* output) override {
    return multiplier_->multiply(matrix, input, rows, accumulate, output);
  }

  void split_heads(const HeadShape& shape, const float* fused, const float* cosine,
                   const float* sine, int rows, const HeadRows& output) override {
    const std::ptrdiff_t head_dim = shape.head_dim;
    const std::ptrdiff_t query_width = shape.query_heads * head_dim;
    const std::ptrdiff_t kv_width = shape.kv_heads * head_dim;
    const std::ptrdiff_t width = query_width + 2 * kv_width;
    for_rows(rows, width, [&](std::ptrdiff_t row) {
      const float* source = fused + row * width;
      const float* row_cosine = cosine + row * (head_dim / 2);
      const float* row_sine = sine + row * (head_dim / 2);
      rotate_heads(shape, shape.query_heads, source, shape.query_norm, row_cosine, row_sine,
                   output.query + row * query_width);
      rotate_heads(shape, shape.kv_heads, source + query_width, shape.key_norm, row_cosine,
                   row_sine, output.key + row * kv_width);
      std::copy_n(source + query_width + kv_width, kv_width, output.value + row * kv_width);
    });
  }

  void silu_multiply(const float* fused, int rows, int width, float* output) override {
    for_rows(rows, 2 * std::ptrdiff_t{width}, [&](std::ptrdiff_t row) {
      const float* gate = fused + row * 2 * width;
      kernels_.silu_multiply(gate, gate + width, width, output + row * width);
    });
  }

  void gather_rows(const float* input, std::span<const int> rows, int width,
                   float* output) override {
    for (const int row : rows) {
      output = std::copy_n(input + std::ptrdiff_t{row} * width, width, output);
    }
  }

  bool all_finite(const float* values, std::size_t count, int /*check*/) override {
    const auto pieces = static_cast<int>((count + kTaskNumbers - 1) / kTaskNumbers);
    std::atomic<bool> finite{true};
    for_rows(pieces, kTaskNumbers, [&](std::ptrdiff_t piece) {
      const std::ptrdiff_t first = piece * kTaskNumbers;
      const auto length = std::min(kTaskNumbers, static_cast<std::ptrdiff_t>(count) - first);
      if (!kernels_.all_finite(values + first, static_cast<int>(length))) {
        finite.store(false, std::memory_order_relaxed);
      }
    });
    return finite;
  }

  std::span<const int> largest(const float* values, int rows, int width) override {
    largest_.resize(static_cast<std::size_t>(rows));
    for_rows(rows, width, [&](std::ptrdiff_t row) {
      const float* first = values + row * width;
      largest_[static_cast<std::size_t>(row)] =
          static_cast<int>(std::max_element(first, first + width) - first);
    });
    return largest_;
  }

  Result<std::optional<int>> finish() override { return std::nullopt; }

  Status run(const RecordingKey& /*key*/, const std::function<Status()>& body) override {
    return body();
  }

  void from_host(const float* source, std::size_t count, float* output) override {
    std::copy_n(source, count, output);
  }

  const float* to_host(const float* values, std::size_t /*count*/) override { return values; }

 private:
  // Calls body(row) for all rows, in parallel where there are enough numbers.
  template <typename Body>
  void for_rows(int rows, std::ptrdiff_t numbers_per_row, const Body& body) {
    const auto rows_per_task = static_cast<int>(
        std::max<std::ptrdiff_t>(kTaskNumbers / std::max<std::ptrdiff_t>(numbers_per_row, 1), 1));
    const int tasks = (rows + rows_per_task - 1) / rows_per_task;
    threads_.run(tasks, [&](int task, int /*worker*/) {
      const int end = std::min((task + 1) * rows_per_task, rows);
      for (int row = task * rows_per_task; row < end; ++row) body(row);
    });
  }

  // heads, output: [count, head_dim]; norm: [head_dim] or null.
  void rotate_heads(const HeadShape& shape, int count, const float* heads, const float* norm,
                    const float* cosine, const float* sine, float* output) const {
    for (int head = 0; head < count; ++head) {
      const std::ptrdiff_t offset = std::ptrdiff_t{head} * shape.head_dim;
      const float* input = heads + offset;
      if (norm != nullptr) {
        kernels_.rms_norm(input, norm, shape.norm_epsilon, shape.head_dim, output + offset);
        input = output + offset;
      }
      kernels_.rotate(input, cosine, sine, shape.head_dim, output + offset);
    }
  }

  std::vector<int> largest_;
  std::unique_ptr<Multiplier> multiplier_;
  const RowKernels& kernels_;
  ThreadPool& threads_;
};

}  // namespace

Result<std::unique_ptr<Ops>> create_cpu_ops(bool bfloat16, Isa isa, ThreadPool& threads) {
  if (bfloat16 && !multiplies_bfloat16()) {
    return fail(
        "compute type bfloat16: this machine has no bf16 instructions (AVX512_BF16); "
        "float32 runs everywhere");
  }
  const RowKernels& kernels = row_kernels(isa);
  KVQ_ASSIGN_OR_RETURN(auto multiplier, Multiplier::create(bfloat16, kernels, threads));
  return std::make_unique<CpuOps>(std::move(multiplier), kernels, threads);
}

}  // namespace kvq
