#include "kvq/attention/cuda/decode.h"

#include <algorithm>

#include "kvq/attention/cuda/decode_layout.h"
#include "kvq/attention/cuda/kernels.h"
#include "kvq/base/cuda/memory.h"

namespace kvq::cuda {
namespace {

// Of a long item's pages, in 1/1024: enough for the slowest multiprocessor to be relieved, few
// enough that the claims do not count.
constexpr int kClaimedShare = 128;

// Pages of at most so many bytes are kept two a warp. More bytes in flight are shared out unfairly
// among the multiprocessors.
constexpr std::size_t kTwoStagesBytes = 8192;

std::size_t rounded(std::size_t bytes) { return (bytes + 127) / 128 * 128; }

Divisor divisor(int number) { return {number, 1.0F / static_cast<float>(number)}; }

// Copied 16 bytes at a time.
Status check_rows(const char* field, const RowBlock& rows) {
  const auto key = reinterpret_cast<std::uintptr_t>(rows.key);
  const auto value = reinterpret_cast<std::uintptr_t>(rows.value);
  if ((key | value) % 16 == 0 && rows.sequence_stride % 8 == 0 && rows.head_stride % 8 == 0) {
    return {};
  }
  return fail(
      "attention: {}: expected rows at multiples of 16 bytes, found {:#x} and {:#x}, "
      "strides of {} and {} numbers",
      field, key, value, rows.sequence_stride, rows.head_stride);
}

struct ChosenKernel {
  DecodeKernel kernel;
  const char* family;
};

ChosenKernel choose_kernel(const PageFormat& format, const TileShape& tiles) {
  if (!is_symmetric_page(format)) {
    if (is_grouped_page(format)) {
      const DecodeKernel grouped = grouped_decode_kernel(
          format.key.depth_wise, format.value.depth_wise, tiles.head_blocks, tiles.columns);
      if (grouped.function != nullptr) return {grouped, "grouped"};
    }
    return {any_decode_kernel(tiles.head_blocks, tiles.columns), "any"};
  }
  const DecodeKernel fixed = fixed_decode_kernel(format.key.spec.bits, format.value.spec.bits,
                                                 tiles.head_blocks, tiles.columns);
  if (fixed.function != nullptr) return {fixed, "fixed"};
  return {symmetric_decode_kernel(tiles.head_blocks, tiles.columns), "symmetric"};
}

}  // namespace

Result<Decode> Decode::create(const AttentionShape& shape, const PageFormat& format,
                              const DecodeOptions& options) {
  if (options.max_sequences <= 0) {
    return fail("attention: max_sequences: expected at least 1, found {}", options.max_sequences);
  }
  Decode decode;
  KVQ_ASSIGN_OR_RETURN(decode.params_, layout_params(shape, format));
  DecodeParams& params = decode.params_;
  params.claimed_share = options.deterministic ? 0 : kClaimedShare;

  const TileShape tiles = tile_shape(shape);
  const ChosenKernel chosen = choose_kernel(format, tiles);
  const DecodeKernel& kernel = chosen.kernel;
  decode.kernel_ = kernel.function;
  decode.max_sequences_ = options.max_sequences;
  decode.name_ = fmt::format("cuda/{} k{}v{} d{}", chosen.family, name(format.key.spec.bits),
                             name(format.value.spec.bits), 64 * tiles.head_blocks);
  const int tile_heads = std::min(params.heads, tiles.columns * kHeadTile);
  params.partial_floats =
      static_cast<int>(rounded(tile_heads * (64 * tiles.head_blocks + 2) * 4) / 4);

  int device = 0;
  int shared = 0;
  KVQ_RETURN_IF_ERROR(check(cudaGetDevice(&device), "device"));
  KVQ_RETURN_IF_ERROR(check(
      cudaDeviceGetAttribute(&decode.blocks_, cudaDevAttrMultiProcessorCount, device), "device"));
  KVQ_RETURN_IF_ERROR(check(
      cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, device), "device"));
  params.stage_bytes =
      static_cast<int>(rounded(std::max(params.page_bytes, exact_unit_bytes(shape.head_dim))));
  const auto region_bytes = [&](int stages) {
    const std::size_t operands = std::size_t(stages) * params.stage_bytes + kernel.operand_bytes;
    return static_cast<int>(rounded(std::max(operands, kernel.result_bytes)));
  };
  const bool two_fit = kernel.max_warps * region_bytes(2) <= shared - kSharedHeader;
  params.stages = format.page_bytes <= kTwoStagesBytes && two_fit ? 2 : 1;
  params.region_bytes = region_bytes(params.stages);
  decode.warps_ = std::min(kernel.max_warps, (shared - kSharedHeader) / params.region_bytes);
  params.warps = divisor(decode.blocks_ * decode.warps_);
  if (decode.warps_ < 1) {
    return fail("attention: a page of {} bytes exceeds the {} bytes of shared memory",
                format.page_bytes, shared);
  }
  int major = 0;
  KVQ_RETURN_IF_ERROR(
      check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device), "device"));
  decode.overlaps_launches_ = major >= 9;
  // The most there is: formats that share the kernel need different amounts.
  KVQ_RETURN_IF_ERROR(check(
      cudaFuncSetAttribute(kernel.function, cudaFuncAttributeMaxDynamicSharedMemorySize, shared),
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
  KVQ_RETURN_IF_ERROR(check_rows("sinks", batch.sinks));
  KVQ_RETURN_IF_ERROR(check_rows("tail", batch.tail));
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
  params.pages_settled = batch.pages_settled;
  params.lengths = batch.lengths;
  params.sinks = batch.sinks;
  params.tail = batch.tail;
  params.row_blocks = batch.row_blocks;
  params.row_blocks_stride = batch.row_blocks_stride;
  params.tables = batch.tables;
  params.sequences = batch.sequences;
  params.even_warps = divisor(even_warps(batch.sequences * params.kv_heads * params.head_tiles,
                                         params.warps.number, warps_));
  const std::size_t items = std::size_t(max_sequences_) * params.kv_heads * params.head_tiles;
  params.counters = static_cast<ItemCounter*>(workspace);
  params.partials = reinterpret_cast<float*>(params.counters + items);
  void* arguments[] = {&params};
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(blocks_);
  config.blockDim = dim3(32 * warps_);
  config.dynamicSmemBytes = kSharedHeader + std::size_t(warps_) * params.region_bytes;
  config.stream = stream;
  // The kernel waits for the one before by itself, having been launched already.
  cudaLaunchAttribute overlap{};
  overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  overlap.val.programmaticStreamSerializationAllowed = 1;
  config.attrs = &overlap;
  config.numAttrs = overlaps_launches_ ? 1 : 0;
  return check(cudaLaunchKernelExC(&config, kernel_, arguments), "decode");
}

}  // namespace kvq::cuda
