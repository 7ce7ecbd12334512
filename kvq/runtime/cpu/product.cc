#include "kvq/runtime/cpu/product.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <new>

#include "kvq/runtime/cpu/cpu_ops.h"
#include "kvq/runtime/cpu/packed_matrix.h"
#include "kvq/runtime/cpu/single_threaded_openmp.h"

namespace kvq {
namespace {

constexpr int kTileRows = 64;
// Sizes of the last tile: at most a third of its rows is padding.
constexpr std::array kTileSizes = {1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, kTileRows};

int padded_rows(int rows) { return *std::ranges::lower_bound(kTileSizes, rows); }

// Runs body and turns what it throws (dnnl::error, std::bad_alloc) into an error.
template <typename Body>
Status guarded(const char* what, const Body& body) {
  try {
    body();
    return {};
  } catch (const dnnl::error& error) {
    return fail("{}: oneDNN: {}", what, error.what());
  } catch (const std::bad_alloc&) {
    return fail("{}: out of memory", what);
  }
}

// Runs body(task, worker) as `threads.run` does; the first error of a task, if any.
template <typename Body>
Status run_guarded(ThreadPool& threads, int tasks, const char* what, const Body& body) {
  std::vector<Status> statuses(static_cast<std::size_t>(threads.size()));
  threads.run(tasks, [&](int task, int worker) {
    const SingleThreadedOpenMp single;
    Status& status = statuses[static_cast<std::size_t>(worker)];
    if (status) status = guarded(what, [&] { body(task, worker); });
  });
  for (const Status& status : statuses) {
    if (!status) return status;
  }
  return {};
}

}  // namespace

bool multiplies_bfloat16() {
  const auto needed = static_cast<unsigned>(dnnl::cpu_isa::avx512_core_bf16);
  return (static_cast<unsigned>(dnnl::get_effective_cpu_isa()) & needed) == needed;
}

struct Multiplier::Call {
  const PackedMatrix& matrix;
  const float* input;
  int rows;
  bool accumulate;
  float* output;

  int tiles() const { return (rows + kTileRows - 1) / kTileRows; }
  int tile_rows(int tile) const { return std::min(rows - tile * kTileRows, kTileRows); }
};

Result<std::unique_ptr<Multiplier>> Multiplier::create(bool bfloat16, const RowKernels& kernels,
                                                       ThreadPool& threads) {
  std::unique_ptr<Multiplier> result(new Multiplier(bfloat16, kernels, threads));
  KVQ_RETURN_IF_ERROR(guarded("matrix products", [&] {
    result->engine_ = dnnl::engine(dnnl::engine::kind::cpu, 0);
    for (int i = 0; i < threads.size(); ++i) {
      result->workers_.push_back({dnnl::stream(result->engine_), {}, {}});
    }
  }));
  return result;
}

Multiplier::Multiplier(bool bfloat16, const RowKernels& kernels, ThreadPool& threads)
    : bfloat16_(bfloat16), kernels_(kernels), threads_(threads) {}

dnnl::memory::data_type Multiplier::type() const {
  return bfloat16_ ? dnnl::memory::data_type::bf16 : dnnl::memory::data_type::f32;
}

dnnl::matmul::primitive_desc Multiplier::describe(const Shape& shape,
                                                  const dnnl::memory::desc& weights) const {
  const dnnl::memory::desc input({shape.rows, shape.inputs}, type(), dnnl::memory::format_tag::ab);
  const dnnl::memory::desc output({shape.rows, shape.outputs}, dnnl::memory::data_type::f32,
                                  dnnl::memory::format_tag::ab);
  dnnl::primitive_attr attributes;
  attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);
  return {{input, weights, output}, attributes, engine_};
}

const dnnl::memory::desc& Multiplier::weights_layout(int inputs, int outputs) {
  const auto [entry, added] = layouts_.try_emplace({inputs, outputs});
  if (added) {
    const dnnl::memory::desc any({inputs, outputs}, type(), dnnl::memory::format_tag::any);
    entry->second = describe({kTileRows * terms(), inputs, outputs}, any).weights_desc();
  }
  return entry->second;
}

Multiplier::Product& Multiplier::product(const Shape& shape) {
  const auto found = products_.find(shape);
  if (found != products_.end()) return found->second;
  const auto description = describe(shape, weights_layout(shape.inputs, shape.outputs));
  Product product{dnnl::matmul(description), {}};
  for (Worker& worker : workers_) {
    const auto unbound = [&](const dnnl::memory::desc& desc) {
      return dnnl::memory(desc, engine_, DNNL_MEMORY_NONE);
    };
    product.arguments.push_back({{DNNL_ARG_SRC, unbound(description.src_desc())},
                                 {DNNL_ARG_WEIGHTS, unbound(description.weights_desc())},
                                 {DNNL_ARG_DST, unbound(description.dst_desc())},
                                 {DNNL_ARG_SCRATCHPAD, unbound(description.scratchpad_desc())}});
    worker.scratchpad.reserve(description.scratchpad_desc().get_size());
    worker.result.reserve(description.dst_desc().get_size());
  }
  return products_.emplace(shape, std::move(product)).first->second;
}

Result<std::unique_ptr<Matrix>> Multiplier::prepare(std::span<const MatrixPart> parts) {
  const auto inputs = static_cast<int>(parts.front().weight.shape[1]);
  int outputs = 0;
  bool any_bias = false;
  for (const MatrixPart& part : parts) {
    outputs += static_cast<int>(part.weight.shape[0]);
    any_bias = any_bias || part.bias.has_value();
  }
  auto matrix = std::make_unique<PackedMatrix>(outputs, inputs);
  if (any_bias) {
    matrix->bias.resize(static_cast<std::size_t>(outputs));
    float* bias = matrix->bias.data();
    for (const MatrixPart& part : parts) {
      if (part.bias) read_floats(*part.bias, bias);
      bias += part.weight.shape[0];
    }
  }
  matrix->slices = cut_columns(outputs, threads_.size());
  KVQ_RETURN_IF_ERROR(guarded("weights", [&] {
    const SingleThreadedOpenMp single;
    for (ColumnSlice& slice : matrix->slices) {
      const dnnl::memory::desc& layout = weights_layout(inputs, slice.count);
      slice.weights = dnnl::memory(layout, engine_, arena_.take(layout.get_size()));
    }
  }));
  const auto pack = [&](int task, int worker) {
    pack_slice(parts, engine_, workers_[static_cast<std::size_t>(worker)].stream,
               matrix->slices[static_cast<std::size_t>(task)]);
  };
  KVQ_RETURN_IF_ERROR(
      run_guarded(threads_, static_cast<int>(matrix->slices.size()), "weights", pack));
  return matrix;
}

Status Multiplier::multiply(const Matrix& matrix, const float* input, int rows, bool accumulate,
                            float* output) {
  const Call call{static_cast<const PackedMatrix&>(matrix), input, rows, accumulate, output};
  KVQ_RETURN_IF_ERROR(guarded("matrix product", [&] { reserve_products(call); }));
  const int tiles = call.tiles();
  if (tiles == 1) {
    pack_tile(call, 0);
  } else {
    threads_.run(tiles, [&](int tile, int) { pack_tile(call, tile); });
  }
  const int slices = static_cast<int>(call.matrix.slices.size());
  return run_guarded(threads_, slices * tiles, "matrix product", [&](int task, int worker) {
    run_task(call, task / tiles, task % tiles, worker);
  });
}

// Creates what the tasks need, as they must only read.
void Multiplier::reserve_products(const Call& call) {
  const SingleThreadedOpenMp single;
  const int last_rows = padded_rows(call.tile_rows(call.tiles() - 1));
  for (const ColumnSlice& slice : call.matrix.slices) {
    if (call.tiles() > 1) product({kTileRows * terms(), call.matrix.inputs(), slice.count});
    product({last_rows * terms(), call.matrix.inputs(), slice.count});
  }
  const std::size_t rows = static_cast<std::size_t>(call.tiles()) * kTileRows;
  input_.reserve(rows * static_cast<std::size_t>(call.matrix.inputs()) * sizeof(float));
}

void Multiplier::pack_tile(const Call& call, int tile) {
  const std::ptrdiff_t inputs = call.matrix.inputs();
  const std::ptrdiff_t rows = call.tile_rows(tile);
  const float* source = call.input + tile * kTileRows * inputs;
  if (!bfloat16_) {
    std::copy_n(source, rows * inputs, input_.as<float>() + tile * kTileRows * inputs);
    return;
  }
  BFloat16* high = input_.as<BFloat16>() + tile * kTileRows * 2 * inputs;
  BFloat16* low = high + padded_rows(static_cast<int>(rows)) * inputs;
  kernels_.split(source, static_cast<int>(rows * inputs), high, low);
}

void Multiplier::run_task(const Call& call, int slice_index, int tile, int worker_index) {
  const ColumnSlice& slice = call.matrix.slices[static_cast<std::size_t>(slice_index)];
  const int inputs = call.matrix.inputs();
  const int rows = call.tile_rows(tile);
  const int padded = padded_rows(rows);
  Worker& worker = workers_[static_cast<std::size_t>(worker_index)];
  Product& product = products_.at({padded * terms(), inputs, slice.count});
  auto& arguments = product.arguments[static_cast<std::size_t>(worker_index)];
  const std::size_t row_bytes = static_cast<std::size_t>(inputs) * sizeof(float);  // all terms'
  arguments.at(DNNL_ARG_SRC)
      .set_data_handle(input_.as<std::byte>() +
                       static_cast<std::size_t>(tile) * kTileRows * row_bytes);
  arguments.at(DNNL_ARG_WEIGHTS) = slice.weights;
  arguments.at(DNNL_ARG_DST).set_data_handle(worker.result.as<float>());
  arguments.at(DNNL_ARG_SCRATCHPAD).set_data_handle(worker.scratchpad.as<std::byte>());
  product.primitive.execute(worker.stream, arguments);

  const float* result = worker.result.as<float>();
  const std::ptrdiff_t low = bfloat16_ ? std::ptrdiff_t{padded} * slice.count : 0;
  const float* bias = call.matrix.bias.empty() ? nullptr : call.matrix.bias.data() + slice.first;
  for (std::ptrdiff_t row = 0; row < rows; ++row) {
    const float* high = result + row * slice.count;
    float* output = call.output + (tile * kTileRows + row) * call.matrix.outputs() + slice.first;
    kernels_.finish_product({high, bfloat16_ ? high + low : nullptr}, bias, call.accumulate,
                            slice.count, output);
  }
}

}  // namespace kvq
