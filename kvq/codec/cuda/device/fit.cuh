// Fits the groups of one tensor and turns its values into codes. A warp takes eight adjacent lines
// of one group of members at a time.
#pragma once

#include "kvq/codec/cuda/device/half_quadratic.cuh"

namespace kvq::cuda {

// In shared memory.
struct PackedParts {
  std::uint32_t* words;  // [quads][quad_words()]: [blocks][64 rows], byte i of a word = the code of
                         // depth 4T + i
  std::uint16_t* scales;  // sections, as in the page
  std::uint16_t* centers;
};

// Codes of this lane's members. line: of the tensor; member: this lane's first one.
__device__ __forceinline__ void write_codes(const PackTensor& tensor, const Group& group,
                                            Fitted fitted, int line, int member,
                                            std::uint32_t* words) {
  const CodeUnits units = tensor.units;
  const float inverse_scale = inverse(fitted.scale) * units.unit;
  const int last = __float_as_int(units.top);
  const int depth = tensor.members_are_depths ? member : line;
  const int row = tensor.members_are_depths ? line : member;
  const int quad_bytes = 4 * quad_words(tensor.blocks);
  // Four members on: the next quad, or four rows.
  const int step = tensor.members_are_depths ? quad_bytes : 16;
  auto* byte =
      reinterpret_cast<unsigned char*>(words) + (depth >> 2) * quad_bytes + row * 4 + (depth & 3);
  for_each_member(group, [&](float value) {
    const float position =
        __saturatef((value - fitted.center) * inverse_scale + units.middle) + units.rounder;
    // The code is in the low bits, which sort like the numbers.
    *byte = static_cast<unsigned char>(min(__float_as_int(position), last));
    byte += step;
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
  int member = 0;
  for (int warp_line = static_cast<int>(threadIdx.x / 32) * kWarpLines;;
       warp_line += static_cast<int>(blockDim.x / 32) * kWarpLines) {
    for (; warp_line >= tensor.lines; warp_line -= tensor.lines) member += tensor.group_members;
    if (member >= tensor.members) break;
    const int line = warp_line + lane / kTeam;
    const int first_line = line & -tensor.group_lines;
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
      const int line_group = line >> tensor.log2_group_lines;
      const int member_group = member / tensor.group_members;
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
