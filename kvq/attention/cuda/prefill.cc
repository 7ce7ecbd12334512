#include "kvq/attention/cuda/prefill.h"

#include <algorithm>
#include <bit>

#include "kvq/attention/cuda/decode_layout.h"
#include "kvq/attention/cuda/kernels.h"
#include "kvq/base/cuda/memory.h"

namespace kvq::cuda {
namespace {

// Shared memory of the barriers of a slot, of a raw buffer.
constexpr int kSlotBarrierBytes = 16;
constexpr int kRawBarrierBytes = 8;

int log2_of(int power) { return std::countr_zero(static_cast<unsigned>(power)); }

int rounded(std::size_t bytes, int unit) {
  return (static_cast<int>(bytes) + unit - 1) / unit * unit;
}

PackedTensor packed_tensor(const TensorLayout& layout, const TensorFormat& format) {
  PackedTensor tensor{};
  tensor.bits = layout.bits;
  tensor.steps = layout.steps;
  tensor.block_steps = layout.steps * format.blocks;
  tensor.block_bytes = layout.block_bytes;
  tensor.first = layout.planes;
  tensor.bytes = rounded(format.bytes, 16);
  tensor.scales = layout.scales - layout.planes;
  tensor.centers = layout.centers - layout.planes;
  tensor.unit = 1;
  if (layout.bits == Bits::k16) return tensor;
  tensor.unit = 1 << kUnpackedPower;
  tensor.depth_wise = layout.depth_wise;
  tensor.affine = layout.affine;
  tensor.plain = !layout.affine && format.spec.axis == Axis::kToken && format.spec.group == 64 &&
                 format.head_dim % 64 == 0;
  tensor.log_group_rows = log2_of(layout.group_rows);
  tensor.log_group_depth = log2_of(layout.group_depth);
  tensor.row_groups = layout.row_groups;
  tensor.depth_groups = layout.depth_groups;
  return tensor;
}

bool is_aligned(const RowBlock& rows) {
  return rows.sequence_stride % 8 == 0 && rows.head_stride % 8 == 0;
}

// Chooses what of the shared memory of `limit` bytes is for slots and what for raw buffers; returns
// the bytes of everything, more than `limit` if even the least does not fit.
int share_memory(int slot_bytes, int limit, PrefillParams& params) {
  struct Split {
    int slots;
    int raw_buffers;
  };
  int bytes = 0;
  for (const auto [slots, raw_buffers] : {Split{3, 2}, Split{2, 2}, Split{2, 1}, Split{1, 1}}) {
    params.slots = slots;
    params.raw_buffers = raw_buffers;
    bytes = 2 * slots * (slot_bytes + kSlotBarrierBytes) +
            2 * raw_buffers * (params.raw_bytes + kRawBarrierBytes) + params.query_bytes;
    if (bytes <= limit) break;
  }
  return bytes;
}

}  // namespace

Result<Prefill> Prefill::create(const AttentionShape& shape, const PageFormat& format,
                                const PrefillOptions& options) {
  KVQ_ASSIGN_OR_RETURN(const DecodeParams layout, layout_params(shape, format));
  if (options.sinks < 0 || options.window < 0) {
    return fail("attention: expected sinks and window of at least 0, found {} and {}",
                options.sinks, options.window);
  }
  Prefill prefill;
  PrefillParams& params = prefill.params_;
  params.kv_heads = layout.kv_heads;
  params.heads = layout.heads;
  params.head_dim = layout.head_dim;
  params.score_scale = layout.score_scale;
  params.sink_tokens = options.sinks;
  params.window = options.window;
  params.exact_prefill = options.exact_prefill;
  params.key = packed_tensor(layout.key, format.key);
  params.value = packed_tensor(layout.value, format.value);
  params.key_rotation = layout.key_rotation;
  params.value_rotation = layout.value_rotation;

  const int head_blocks = tile_shape(shape).head_blocks;
  const PrefillKernel kernel = prefill_kernel_of(head_blocks);
  prefill.kernel_ = kernel.function;
  prefill.threads_ = kernel.threads;
  prefill.tile_rows_ = kernel.tile_rows;
  prefill.name_ = fmt::format("cuda/prefill k{}v{} d{}", name(format.key.spec.bits),
                              name(format.value.spec.bits), 64 * head_blocks);

  int device = 0;
  int limit = 0;
  KVQ_RETURN_IF_ERROR(check(cudaGetDevice(&device), "no device"));
  KVQ_RETURN_IF_ERROR(check(
      cudaDeviceGetAttribute(&limit, cudaDevAttrMaxSharedMemoryPerBlockOptin, device), "device"));
  params.raw_bytes =
      rounded(std::max({params.key.bytes, params.value.bytes, kernel.slot_bytes}), 128);
  params.query_bytes = kernel.query_bytes;
  prefill.shared_bytes_ = share_memory(kernel.slot_bytes, limit, params);
  if (prefill.shared_bytes_ > limit) {
    return fail("attention: expected {} bytes of shared memory, found {}", prefill.shared_bytes_,
                limit);
  }
  // All that there is: other formats run the same kernel.
  KVQ_RETURN_IF_ERROR(check(
      cudaFuncSetAttribute(kernel.function, cudaFuncAttributeMaxDynamicSharedMemorySize, limit),
      "shared memory"));
  return prefill;
}

Status Prefill::run(const PrefillBatch& batch, cudaStream_t stream) const {
  if (batch.sequences < 1 || batch.tokens < 0) {
    return fail("attention: expected sequences and tokens, found {} and {}", batch.sequences,
                batch.tokens);
  }
  if (batch.page_stride % 128 != 0 || batch.head_stride % 128 != 0) {
    return fail("attention: expected page strides in multiples of 128 bytes, found {} and {}",
                batch.page_stride, batch.head_stride);
  }
  if (!is_aligned(batch.sinks) || !is_aligned(batch.tail)) {
    return fail("attention: expected strides of exact rows in multiples of 8, found {}, {}, {}, {}",
                batch.sinks.sequence_stride, batch.sinks.head_stride, batch.tail.sequence_stride,
                batch.tail.head_stride);
  }
  PrefillParams params = params_;
  params.query = batch.query;
  params.output = batch.output;
  params.query_type = batch.query_type;
  params.output_type = batch.output_type;
  params.query_starts = batch.query_starts;
  params.lengths = batch.lengths;
  params.pages = batch.pages;
  params.page_table = batch.page_table;
  params.page_stride = batch.page_stride;
  params.head_stride = batch.head_stride;
  params.table_stride = batch.table_stride;
  params.sinks = batch.sinks;
  params.tail = batch.tail;
  params.row_blocks = batch.row_blocks;
  params.row_blocks_stride = batch.row_blocks_stride;
  params.sequences = batch.sequences;
  // No fewer tiles than there are, however the tokens are split.
  const std::int64_t rows = std::int64_t{batch.tokens} * params.heads;
  const std::int64_t blocks = (rows / tile_rows_ + batch.sequences) * params.kv_heads;
  void* arguments[] = {&params};
  return check(cudaLaunchKernel(kernel_, dim3(static_cast<unsigned>(blocks)), dim3(threads_),
                                arguments, shared_bytes_, stream),
               "prefill");
}

}  // namespace kvq::cuda
