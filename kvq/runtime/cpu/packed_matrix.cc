#include "kvq/runtime/cpu/packed_matrix.h"

#include <algorithm>

#include "kvq/runtime/tensor_rows.h"

namespace kvq {
namespace {

constexpr int kBlockColumns = 64;
constexpr int kMaxSliceBlocks = 4;

// Rows [first, first + count) of the stacked parts as float32 [count, inputs].
void read_rows(std::span<const MatrixPart> parts, std::int64_t first, std::int64_t count,
               float* rows) {
  std::int64_t part_first = 0;
  for (const MatrixPart& part : parts) {
    const std::int64_t part_end = part_first + part.weight.shape[0];
    const std::int64_t begin = std::max(first, part_first);
    const std::int64_t end = std::min(first + count, part_end);
    if (begin < end) {
      read_floats(tensor_rows(part.weight, begin - part_first, end - begin),
                  rows + (begin - first) * part.weight.shape[1]);
    }
    part_first = part_end;
  }
}

}  // namespace

std::vector<ColumnSlice> cut_columns(int outputs, int threads) {
  const int blocks = (outputs + kBlockColumns - 1) / kBlockColumns;
  const int least = (blocks + kMaxSliceBlocks - 1) / kMaxSliceBlocks;
  const int count = std::min((least + threads - 1) / threads * threads, blocks);
  std::vector<ColumnSlice> slices(static_cast<std::size_t>(count));
  for (int i = 0; i < count; ++i) {
    const auto boundary = [&](std::int64_t slice) {
      return std::min(static_cast<int>(slice * blocks / count) * kBlockColumns, outputs);
    };
    slices[static_cast<std::size_t>(i)].first = boundary(i);
    slices[static_cast<std::size_t>(i)].count = boundary(i + 1) - boundary(i);
  }
  return slices;
}

void pack_slice(std::span<const MatrixPart> parts, const dnnl::engine& engine, dnnl::stream& stream,
                ColumnSlice& slice) {
  const std::int64_t inputs = parts.front().weight.shape[1];
  const dnnl::memory::desc plain({inputs, slice.count}, dnnl::memory::data_type::f32,
                                 dnnl::memory::dims{1, inputs});
  dnnl::memory rows(plain, engine);
  read_rows(parts, slice.first, slice.count, static_cast<float*>(rows.get_data_handle()));
  dnnl::reorder(rows, slice.weights).execute(stream, rows, slice.weights);
  stream.wait();
}

}  // namespace kvq
