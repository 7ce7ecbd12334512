#include "kvq/attention/cuda/decode_layout.h"

#include <bit>

#include "kvq/attention/softmax_state.h"

namespace kvq::cuda {
namespace {

// log2, rounded up: a group that is no power of two is the only one.
int shift_of(int group) { return std::bit_width(static_cast<unsigned>(group - 1)); }

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
  layout.row_shift = shift_of(format.group_rows);
  layout.depth_shift = shift_of(format.group_depth);
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

bool is_symmetric(const TensorFormat& format) {
  return format.spec.bits == Bits::k16 ||
         (format.spec.axis == Axis::kToken && format.spec.group == 64 && !format.has_centers());
}

bool is_grouped(const TensorFormat& format) {
  if (format.spec.bits == Bits::k16) return true;
  return (format.depth_wise ? format.group_rows : format.group_depth) >= 32;
}

bool has_whole_blocks(const PageFormat& format) {
  const int head_dim = format.head_dim();
  return head_dim == 64 || head_dim == 128 || head_dim == 256;
}

}  // namespace

TileShape tile_shape(const AttentionShape& shape) {
  const int head_blocks = shape.head_dim <= 64 ? 1 : shape.head_dim <= 128 ? 2 : 4;
  const int heads = shape.query_heads / shape.kv_heads;
  return {head_blocks, heads > kHeadTile && head_blocks <= 2 ? 2 : 1};
}

int even_warps(int items, int warps, int warps_per_block) {
  int each = warps / items;
  if (each == 0) return warps;
  const int beyond_blocks = each % warps_per_block;
  if (each > warps_per_block && 16 * beyond_blocks <= each) each -= beyond_blocks;
  return 16 * (warps - each * items) <= warps ? each * items : warps;
}

bool is_symmetric_page(const PageFormat& format) {
  return has_whole_blocks(format) && is_symmetric(format.key) && is_symmetric(format.value);
}

bool is_grouped_page(const PageFormat& format) {
  return has_whole_blocks(format) && is_grouped(format.key) && is_grouped(format.value);
}

Result<DecodeParams> layout_params(const AttentionShape& shape, const PageFormat& format) {
  if (shape.kv_heads <= 0 || shape.query_heads <= 0 || shape.query_heads % shape.kv_heads != 0 ||
      shape.query_heads / shape.kv_heads > kMaxHeadsPerKvHead) {
    return fail("attention: expected 1 to {} query heads for each kv head, found {} for {}",
                kMaxHeadsPerKvHead, shape.query_heads, shape.kv_heads);
  }
  if (shape.head_dim != format.head_dim()) {
    return fail("attention: expected pages with head_dim {}, found {}", shape.head_dim,
                format.head_dim());
  }
  DecodeParams params{};
  params.kv_heads = shape.kv_heads;
  params.heads = shape.query_heads / shape.kv_heads;
  params.head_dim = shape.head_dim;
  params.score_scale = shape.scale * kLog2E;
  params.key = layout_of(format.key);
  params.value = layout_of(format.value);
  params.page_bytes = static_cast<int>(format.page_bytes);
  params.key_rotation = rotation_of(format.key);
  params.value_rotation = rotation_of(format.value);
  const TileShape tiles = tile_shape(shape);
  const int pass_heads = tiles.columns * kHeadTile;
  params.head_tiles = (params.heads + pass_heads - 1) / pass_heads;
  return params;
}

}  // namespace kvq::cuda
