#include "kvq/attention/cuda/dequantize.h"

#include <cmath>

#include "kvq/base/cuda/memory.h"

namespace kvq::cuda {
namespace {

StoredTensor stored_tensor(const TensorFormat& format) {
  StoredTensor tensor{};
  tensor.bits = format.spec.bits;
  tensor.affine = format.has_centers();
  tensor.rows = format.is_key ? kPageTokens : format.head_dim;
  tensor.depth = format.depth;
  tensor.block_bytes = static_cast<int>(format.block_bytes);
  tensor.planes = static_cast<int>(format.planes_offset);
  tensor.scales = static_cast<int>(format.scales_offset);
  tensor.centers = static_cast<int>(format.centers_offset);
  tensor.rotation = 1;
  if (format.spec.bits == Bits::k16) return tensor;
  const auto [low, high] = planes(format.spec.bits);
  tensor.low_width = low;
  tensor.high_width = high;
  tensor.middle = middle(format.spec.bits);
  if (format.spec.rotation == Rotation::kHadamard) {
    tensor.rotation = hadamard_block(format.head_dim);
    tensor.rotation_scale = 1 / std::sqrt(static_cast<float>(tensor.rotation));
  }
  for (int row = 0; row < tensor.rows; ++row) {
    tensor.row_offset[row] = static_cast<std::uint16_t>(parameter_row_offset(format, row));
  }
  for (int depth = 0; depth < tensor.depth; ++depth) {
    tensor.depth_offset[depth] = static_cast<std::uint16_t>(parameter_depth_offset(format, depth));
  }
  return tensor;
}

int shared_bytes(int head_dim) { return kPageTokens * head_dim * static_cast<int>(sizeof(float)); }

}  // namespace

Result<Dequantize> Dequantize::create(const PageFormat& format, int kv_heads) {
  Dequantize dequantize;
  DequantizeParams& params = dequantize.params_;
  params.tensors[0] = stored_tensor(format.key);
  params.tensors[1] = stored_tensor(format.value);
  params.kv_heads = kv_heads;
  params.head_dim = format.head_dim();
  // The most there is: formats share the kernel.
  KVQ_RETURN_IF_ERROR(
      check(cudaFuncSetAttribute(dequantize_kernel(), cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 shared_bytes(256)),
            "shared memory"));
  return dequantize;
}

Status Dequantize::run(const DecodeBatch& caches, std::int64_t most_tokens, const PlainRows& rows,
                       cudaStream_t stream) const {
  if (caches.sequences < 1 || caches.row_blocks == nullptr) {
    return fail("dequantizing: expected sequences whose exact rows lie in blocks");
  }
  DequantizeParams params = params_;
  params.pages = caches.pages;
  params.page_table = caches.page_table;
  params.page_stride = caches.page_stride;
  params.head_stride = caches.head_stride;
  params.table_stride = caches.table_stride;
  params.lengths = caches.lengths;
  params.sinks = caches.sinks;
  params.tail = caches.tail;
  params.row_blocks = caches.row_blocks;
  params.row_blocks_stride = caches.row_blocks_stride;
  params.rows = rows;
  // The sinks, and 64 tokens each of what follows them.
  const auto units = static_cast<unsigned>(1 + (most_tokens + kPageTokens - 1) / kPageTokens);
  const dim3 blocks(units, static_cast<unsigned>(caches.sequences * params.kv_heads), 2);
  void* arguments[] = {&params};
  return check(cudaLaunchKernel(dequantize_kernel(), blocks, dim3(kDequantizeThreads), arguments,
                                static_cast<std::size_t>(shared_bytes(params.head_dim)), stream),
               "dequantizing");
}

}  // namespace kvq::cuda
