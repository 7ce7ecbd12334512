#include "kvq/codec/page_format.h"

#include <algorithm>

namespace kvq {
namespace {

constexpr std::size_t round_up(std::size_t bytes, std::size_t alignment) {
  return (bytes + alignment - 1) / alignment * alignment;
}

// All planes of one block of 64 rows.
std::size_t bytes_of_block(Bits bits, int depth) {
  const int quads = depth / 4;
  switch (bits) {
    case Bits::k16:
      return static_cast<std::size_t>(depth) * kBlockRows * 2;
    case Bits::kTernary:
      return static_cast<std::size_t>(256 * (quads / 5) + 64 * (quads % 5));
    default: {
      const auto [low, high] = planes(bits);
      return static_cast<std::size_t>(32 * (low + high) * quads);
    }
  }
}

// Row groups that share a depth's vectors of depth-wise parameters (N of docs/page_format.md).
int row_groups(const TensorFormat& format) {
  return (format.blocks * kBlockRows + format.group_rows - 1) / format.group_rows;
}

int count_parameters(const TensorFormat& format) {
  const int depth_groups = (format.depth + format.group_depth - 1) / format.group_depth;
  if (format.depth_wise) return (depth_groups + 31) / 32 * row_groups(format) * 32;
  return format.blocks * depth_groups * (kBlockRows / format.group_rows);
}

TensorFormat make_tensor(const TensorSpec& spec, bool is_key, int head_dim, std::size_t offset) {
  TensorFormat format;
  format.spec = spec;
  format.is_key = is_key;
  format.head_dim = head_dim;
  format.blocks = is_key ? 1 : padded_channels(head_dim) / kBlockRows;
  format.depth = is_key ? head_dim : kPageTokens;
  format.block_bytes = bytes_of_block(spec.bits, format.depth);
  std::size_t parameter_bytes = 0;
  if (spec.bits != Bits::k16) {
    const bool channel_axis = spec.axis == Axis::kChannel;
    const int along = std::min(spec.group, channel_axis ? kPageTokens : padded_channels(head_dim));
    const int across = spec.group / along;
    const int tokens = channel_axis ? along : across;
    const int channels = channel_axis ? across : along;
    format.group_rows = is_key ? tokens : channels;
    format.group_depth = is_key ? channels : tokens;
    format.depth_wise = is_key == channel_axis;
    format.parameter_count = count_parameters(format);
    parameter_bytes =
        round_up(static_cast<std::size_t>(format.parameter_count) * 2, kSectionAlignment);
  }
  format.planes_offset = offset;
  format.scales_offset =
      offset +
      round_up(static_cast<std::size_t>(format.blocks) * format.block_bytes, kSectionAlignment);
  format.centers_offset = format.scales_offset + parameter_bytes;
  const std::size_t end = format.centers_offset + (format.has_centers() ? parameter_bytes : 0);
  format.bytes = end - offset;
  return format;
}

// The spec of one tensor, or what is wrong with it. Options that mean nothing take their defaults.
Result<TensorSpec> normalized(const TensorSpec& spec, const char* tensor) {
  if (spec.bits == Bits::k16) return TensorSpec{};
  if (spec.fit == Fit::kHqq && spec.parameters != Parameters::kAffine) {
    return fail(
        "fit of the {}: hqq optimizes a center, expected affine parameters, found symmetric",
        tensor);
  }
  for (int group : {16, 32, 64, 128, 256}) {
    if (spec.group == group) return spec;
  }
  return fail("group of the {}: expected 16, 32, 64, 128 or 256, found {}", tensor, spec.group);
}

}  // namespace

Result<PageFormat> PageFormat::create(const LayerSpec& spec, int head_dim) {
  if (head_dim < 16 || head_dim > 256 || head_dim % 16 != 0) {
    return fail("head_dim: expected a multiple of 16 from 16 to 256, found {}", head_dim);
  }
  KVQ_ASSIGN_OR_RETURN(const TensorSpec key, normalized(spec.key, "keys"));
  KVQ_ASSIGN_OR_RETURN(const TensorSpec value, normalized(spec.value, "values"));
  PageFormat format;
  format.key = make_tensor(key, true, head_dim, 0);
  format.value = make_tensor(value, false, head_dim, format.key.bytes);
  format.page_bytes = round_up(format.key.bytes + format.value.bytes, kPageAlignment);
  return format;
}

double PageFormat::effective_bits() const {
  return 8.0 * static_cast<double>(page_bytes) / (2.0 * kPageTokens * head_dim());
}

PlaneField plane_field(int width, int row, int quad) {
  const int j = row >> 4;
  const int g = (row >> 1) & 7;
  const int r = row & 1;
  const int t = quad & 3;
  switch (width) {
    case 8:
      return {256 * quad + 16 * (8 * r + (g ^ (2 * t))) + 4 * j, 0};
    case 4:
      return {128 * quad + 16 * (g ^ (2 * t)) + 4 * j, 4 * r};
    case 2:
      return {64 * quad + 8 * (g ^ (4 * (t >> 1))) + 4 * (j >> 1), 4 * r + 2 * (j & 1)};
    default:
      return {32 * quad + 4 * g, 4 * r + j};
  }
}

Planes planes(Bits bits) {
  switch (bits) {
    case Bits::k1:
      return {1, 0};
    case Bits::k2:
      return {2, 0};
    case Bits::k3:
      return {2, 1};
    case Bits::k4:
      return {4, 0};
    case Bits::k5:
      return {4, 1};
    case Bits::k6:
      return {4, 2};
    case Bits::k8:
      return {8, 0};
    case Bits::kTernary:
    case Bits::k16:
      break;
  }
  return {0, 0};
}

int parameter_row_offset(const TensorFormat& format, int row) {
  if (format.depth_wise) return row / format.group_rows * 32;
  const int depth_groups = (format.depth + format.group_depth - 1) / format.group_depth;
  const int in_block = row % kBlockRows;
  const int j = in_block >> 4;
  const int g = (in_block >> 1) & 7;
  const int r = in_block & 1;
  int slot = 0;
  switch (format.group_rows) {
    case 1:
      slot = 8 * g + 2 * j + r;
      break;
    case 2:
      slot = 4 * g + j;
      break;
    case 4:
      slot = 4 * (g >> 1) + j;
      break;
    default:
      break;
  }
  const int vector = kBlockRows / format.group_rows;
  return row / kBlockRows * depth_groups * vector + slot;
}

int parameter_depth_offset(const TensorFormat& format, int depth) {
  const int group_depth = format.group_depth;
  if (!format.depth_wise) return depth / group_depth * (kBlockRows / format.group_rows);
  const int step = depth >> 4;
  const int t = (depth >> 2) & 3;
  const int i = depth & 3;
  const int piece = step / (2 * group_depth);
  const int x = step % (2 * group_depth);
  int slot = 0;
  switch (group_depth) {
    case 1:
      slot = 4 * (i & 1) + 2 * x + (i >> 1);
      break;
    case 2:
      slot = 2 * x + (i >> 1);
      break;
    default:
      slot = x;
      break;
  }
  return piece * row_groups(format) * 32 + 8 * t + slot;
}

int parameter_index(const TensorFormat& format, int token, int channel) {
  const int row = format.is_key ? token : channel;
  const int depth = format.is_key ? channel : token;
  return parameter_row_offset(format, row) + parameter_depth_offset(format, depth);
}

}  // namespace kvq
