// Fits the groups of one tensor and turns its values into codes. A warp takes eight adjacent lines
// of one group of members at a time.
#pragma once

#include "kvq/codec/cuda/device/half_quadratic.cuh"

namespace kvq::cuda {

// In shared memory.
struct PackedParts {
  std::uint32_t* words;   // [blocks][quads][kQuadWords]: byte i of a word = the code of depth 4T + i
  std::uint16_t* scales;  // sections, as in the page
  std::uint16_t* centers;
};

// Codes of this lane's members. line: of the tensor; member: this lane's first one.
__device__ __forceinline__ void write_codes(const PackTensor& tensor, const Group& group,
                                            Fitted fitted, int line, int member,
                                            std::uint32_t* words) {
  const CodeUnits units = tensor.units;
  const float inverse_scale = inverse(fitted.scale) * units.unit;
  const int last = static_cast<int>(tensor.last_code);
  auto* bytes = reinterpret_cast<unsigned char*>(words);
  const int depth = tensor.members_are_depths ? member : line;
  const int row = tensor.members_are_depths ? line : member;
  const int block_bytes = 4 * kQuadWords * tensor.quads;
  // Four members on: the next quad or four rows, which may lie in the next block.
  const int step = tensor.members_are_depths ? 4 * kQuadWords : 16;
  const int block_step = tensor.members_are_depths ? 0 : block_bytes - 4 * kPageTokens;
  int at = row / kPageTokens * block_bytes + depth / 4 * 4 * kQuadWords + row % kPageTokens * 4 +
           depth % 4;
  int rows_left = kPageTokens - row % kPageTokens;
  for_each_member(group, [&](float value) {
    const float position =
        __saturatef((value - fitted.center) * inverse_scale + units.middle) + units.rounder;
    bytes[at] = static_cast<unsigned char>(min(__float_as_int(position) & 0x1ff, last));
    at += step;
    rows_left -= 4;
    if (rows_left <= 0) {
      at += block_step;
      rows_left = kPageTokens;
    }
  });
}

__device__ __forceinline__ Fitted fit_group(const PackTensor& tensor, const Group& group, int p) {
  if (!tensor.affine) return fit_symmetric(tensor, group, p);
  if (tensor.half_quadratic) return fit_half_quadratic(tensor, group);
  return fit_affine(tensor, group, p);
}

__device__ __forceinline__ void fit_tensor(const PackTensor& tensor, const float* values,
                                           const PackedParts& parts) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  const int p = lane % kTeam;
  const int warp_lines = tensor.lines / kWarpLines;
  const int member_groups = (tensor.members + tensor.group_members - 1) / tensor.group_members;
  for (int task = static_cast<int>(threadIdx.x / 32); task < warp_lines * member_groups;
       task += kPackWarps) {
    const int member_group = task / warp_lines;
    const int line = task % warp_lines * kWarpLines + lane / kTeam;
    const int first_line = line & -tensor.group_lines;
    const int member = member_group * tensor.group_members;
    const int members = min(tensor.group_members, tensor.members - member);
    Group group;
    group.first = values + first_line * tensor.line_stride + member * tensor.member_stride;
    group.last = group.first + (tensor.group_lines - 1) * tensor.line_stride +
                 (members - 1) * tensor.member_stride;
    group.values = values + line * tensor.line_stride + (member + p) * tensor.member_stride;
    group.stride = kTeam * tensor.member_stride;
    group.count = members / kTeam;
    group.lines = tensor.group_lines;
    group.members = static_cast<float>(members * tensor.group_lines);
    Fitted fitted = fit_group(tensor, group, p);
    if (p == 0 && line == first_line) {
      const int line_group = line / tensor.group_lines;
      const int row = tensor.members_are_depths ? line_group : member_group;
      const int depth = tensor.members_are_depths ? member_group : line_group;
      const int index = tensor.row_offset[row] + tensor.depth_offset[depth];
      parts.scales[index] = __half_as_ushort(__float2half_rn(fitted.scale));
      if (tensor.affine) parts.centers[index] = __half_as_ushort(__float2half_rn(fitted.center));
    }
    write_codes(tensor, group, fitted, line, member + p, parts.words);
  }
}

}  // namespace kvq::cuda
