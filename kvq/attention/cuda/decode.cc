#include "kvq/attention/cuda/decode.h"

#include <algorithm>

#include "kvq/attention/cuda/kernels.h"
#include "kvq/attention/softmax_state.h"

namespace kvq::cuda {
namespace {

// Of a long item's pages, in 1/1024: enough for the slowest multiprocessor to be relieved, few
// enough that the claims do not count.
constexpr int kClaimedShare = 128;

Status check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return {};
  return fail("CUDA: {}: {}", what, cudaGetErrorString(error));
}

std::size_t rounded(std::size_t bytes) { return (bytes + 127) / 128 * 128; }

TensorLayout layout_of(const TensorFormat& format) {
  TensorLayout layout{};
  layout.bits = format.spec.bits;
  layout.steps = format.depth / 16;
  layout.block_bytes = static_cast<int>(format.block_bytes);
  layout.planes = static_cast<int>(format.planes_offset);
  layout.scales = static_cast<int>(format.scales_offset);
  layout.centers = static_cast<int>(format.centers_offset);
  if (format.spec.bits == Bits::k16) return layout;
  layout.depth_wise = format.depth_wise;
  layout.affine = format.has_centers();
  layout.group_rows = format.group_rows;
  layout.group_depth = format.group_depth;
  const int rows = format.is_key ? kBlockRows : padded_channels(format.head_dim);
  layout.row_groups = (rows + format.group_rows - 1) / format.group_rows;
  layout.depth_groups = (format.depth + format.group_depth - 1) / format.group_depth;
  layout.middle = middle(format.spec.bits);
  layout.minus_middle = to_half(-layout.middle).bits * 0x00010001U;
  return layout;
}

// Length of the Hadamard transform, 1 for none.
int rotation_of(const TensorFormat& format) {
  const TensorSpec& spec = format.spec;
  const bool rotated = spec.bits != Bits::k16 && spec.rotation == Rotation::kHadamard;
  return rotated ? hadamard_block(format.head_dim) : 1;
}

bool is_fixed(const TensorFormat& format) {
  return format.spec.bits != Bits::k16 && format.spec.axis == Axis::kToken &&
         format.spec.group == 64 && !format.has_centers() && format.head_dim % 64 == 0;
}

}  // namespace

Result<Decode> Decode::create(const AttentionShape& shape, const PageFormat& format,
                              const DecodeOptions& options) {
  if (shape.kv_heads <= 0 || shape.query_heads % shape.kv_heads != 0 ||
      shape.query_heads / shape.kv_heads > kMaxHeadsPerKvHead) {
    return fail("attention: expected 1 to {} query heads for each kv head, found {} for {}",
                kMaxHeadsPerKvHead, shape.query_heads, shape.kv_heads);
  }
  if (shape.head_dim != format.head_dim()) {
    return fail("attention: expected pages with head_dim {}, found {}", shape.head_dim,
                format.head_dim());
  }
  if (options.max_sequences <= 0) {
    return fail("attention: max_sequences: expected at least 1, found {}", options.max_sequences);
  }
  Decode decode;
  DecodeParams& params = decode.params_;
  params.kv_heads = shape.kv_heads;
  params.heads = shape.query_heads / shape.kv_heads;
  params.head_dim = shape.head_dim;
  params.score_scale = shape.scale * kLog2E;
  params.key = layout_of(format.key);
  params.value = layout_of(format.value);
  params.page_bytes = static_cast<int>(format.page_bytes);
  params.key_rotation = rotation_of(format.key);
  params.value_rotation = rotation_of(format.value);
  params.claimed_share = options.deterministic ? 0 : kClaimedShare;

  const int head_blocks = shape.head_dim <= 64 ? 1 : shape.head_dim <= 128 ? 2 : 4;
  const int columns = params.heads > kHeadTile && head_blocks <= 2 ? 2 : 1;
  params.head_tiles = (params.heads + columns * kHeadTile - 1) / (columns * kHeadTile);
  DecodeKernel kernel;
  if (is_fixed(format.key) && is_fixed(format.value) && shape.head_dim == 64 * head_blocks) {
    kernel = fixed_decode_kernel(format.key.spec.bits, format.value.spec.bits, head_blocks, columns);
  }
  const bool fixed = kernel.function != nullptr;
  if (!fixed) kernel = any_decode_kernel(head_blocks, columns);
  decode.kernel_ = kernel.function;
  decode.max_sequences_ = options.max_sequences;
  decode.name_ = fmt::format("cuda/{} k{}v{} d{}", fixed ? "fixed" : "any",
                             name(format.key.spec.bits), name(format.value.spec.bits),
                             64 * head_blocks);

  params.region_bytes = static_cast<int>(rounded(std::max(format.page_bytes, kernel.result_bytes)));
  const int tile_heads = std::min(params.heads, columns * kHeadTile);
  params.partial_floats = static_cast<int>(rounded(tile_heads * (64 * head_blocks + 2) * 4) / 4);

  int device = 0;
  int shared = 0;
  KVQ_RETURN_IF_ERROR(check(cudaGetDevice(&device), "no device"));
  KVQ_RETURN_IF_ERROR(check(
      cudaDeviceGetAttribute(&decode.blocks_, cudaDevAttrMultiProcessorCount, device), "device"));
  KVQ_RETURN_IF_ERROR(
      check(cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, device),
            "device"));
  decode.warps_ = std::min(kernel.max_warps, (shared - kSharedHeader) / params.region_bytes);
  if (decode.warps_ < 1) {
    return fail("attention: a page of {} bytes exceeds the {} bytes of shared memory",
                format.page_bytes, shared);
  }
  const int bytes = kSharedHeader + decode.warps_ * params.region_bytes;
  KVQ_RETURN_IF_ERROR(check(
      cudaFuncSetAttribute(kernel.function, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes),
      "shared memory"));
  return decode;
}

std::size_t Decode::workspace_bytes() const {
  const std::size_t items = std::size_t(max_sequences_) * params_.kv_heads * params_.head_tiles;
  const std::size_t slots = 2 * std::size_t(blocks_) * warps_;
  return items * sizeof(ItemCounter) + slots * params_.partial_floats * sizeof(float);
}

Status Decode::initialize(void* workspace, cudaStream_t stream) const {
  const std::size_t items = std::size_t(max_sequences_) * params_.kv_heads * params_.head_tiles;
  return check(cudaMemsetAsync(workspace, 0, items * sizeof(ItemCounter), stream), "workspace");
}

Status Decode::run(const DecodeBatch& batch, void* workspace, cudaStream_t stream) const {
  if (batch.sequences < 1 || batch.sequences > max_sequences_) {
    return fail("attention: expected 1 to {} sequences, found {}", max_sequences_, batch.sequences);
  }
  if (batch.page_stride % 128 != 0 || batch.head_stride % 128 != 0) {
    return fail("attention: expected page strides in multiples of 128 bytes, found {} and {}",
                batch.page_stride, batch.head_stride);
  }
  DecodeParams params = params_;
  params.query = batch.query;
  params.output = batch.output;
  params.query_type = batch.query_type;
  params.output_type = batch.output_type;
  params.pages = batch.pages;
  params.page_table = batch.page_table;
  params.page_stride = batch.page_stride;
  params.head_stride = batch.head_stride;
  params.table_stride = batch.table_stride;
  params.lengths = batch.lengths;
  params.sinks = batch.sinks;
  params.tail = batch.tail;
  params.sequences = batch.sequences;
  const std::size_t items = std::size_t(max_sequences_) * params.kv_heads * params.head_tiles;
  params.counters = static_cast<ItemCounter*>(workspace);
  params.partials = reinterpret_cast<float*>(params.counters + items);
  void* arguments[] = {&params};
  const std::size_t shared = kSharedHeader + std::size_t(warps_) * params.region_bytes;
  return check(cudaLaunchKernel(kernel_, dim3(blocks_), dim3(32 * warps_), arguments, shared, stream),
               "decode");
}

}  // namespace kvq::cuda
