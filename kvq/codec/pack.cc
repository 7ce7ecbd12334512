#include "kvq/codec/pack.h"

#include <algorithm>
#include <array>
#include <cstring>

#include "kvq/codec/fit.h"
#include "kvq/codec/page_layout.h"

namespace kvq {
namespace {

constexpr int kMaxRows = kPageTokens * 256;  // numbers of one tensor of a page, head_dim 256

// 16 bits: [block][depth][64 rows]. K is transposed; V's rows only get their missing channels.
void pack_unquantized(const TensorFormat& format, const Half* rows, std::byte* page) {
  auto* out = reinterpret_cast<Half*>(page + format.planes_offset);
  const int head_dim = format.head_dim;
  if (format.is_key) {
    for (int channel = 0; channel < head_dim; ++channel) {
      for (int token = 0; token < kPageTokens; ++token) {
        out[channel * kBlockRows + token] = rows[token * head_dim + channel];
      }
    }
    return;
  }
  std::fill_n(out, format.bytes / sizeof(Half), Half{});
  for (int channel = 0; channel < head_dim; channel += kBlockRows) {
    const int count = std::min(kBlockRows, head_dim - channel);
    for (int token = 0; token < kPageTokens; ++token) {
      std::memcpy(out + (channel + token) * kBlockRows, rows + token * head_dim + channel,
                  static_cast<std::size_t>(count) * sizeof(Half));
    }
  }
}

void pack_tensor(const TensorFormat& format, const Half* rows, std::byte* page,
                 const FitKernels& kernels) {
  if (format.spec.bits == Bits::k16) return pack_unquantized(format, rows, page);
  alignas(64) std::array<float, kMaxRows> values;
  alignas(64) std::array<float, kMaxRows> columns;
  alignas(64) std::array<std::uint32_t, kMaxTensorWords> words;
  alignas(64) std::array<float, kMaxRows / 16> scales;
  alignas(64) std::array<float, kMaxRows / 16> centers;
  const int head_dim = format.head_dim;
  const TensorSpec& spec = format.spec;
  to_float(rows, values.data(), static_cast<std::size_t>(kPageTokens * head_dim));
  if (spec.rotation == Rotation::kHadamard) {
    kernels.hadamard(values.data(), kPageTokens, head_dim, hadamard_block(head_dim));
  }
  const bool token_axis = spec.axis == Axis::kToken;
  if (token_axis) kernels.transpose(values.data(), head_dim, columns.data());

  FitTask task;
  task.values = token_axis ? columns.data() : values.data();
  task.members = token_axis ? head_dim : kPageTokens;
  task.lines = token_axis ? kPageTokens : head_dim;
  task.members_are_depths = format.is_key == token_axis;
  task.group_members = task.members_are_depths ? format.group_depth : format.group_rows;
  task.group_lines = task.members_are_depths ? format.group_rows : format.group_depth;
  task.levels = levels(spec.bits);
  task.affine = format.has_centers();
  task.mean_square = spec.fit == Fit::kMeanSquare;
  task.half_quadratic = spec.fit == Fit::kHqq;
  task.words = words.data();
  task.scales = scales.data();
  task.centers = task.affine ? centers.data() : nullptr;
  if (!format.is_key && head_dim % kBlockRows != 0) words.fill(0);  // the missing channels
  kernels.fit(task);

  const int member_groups = (task.members + task.group_members - 1) / task.group_members;
  const auto count = static_cast<std::size_t>(member_groups * task.lines);
  std::array<Half, kMaxRows / 16> half_scales;
  std::array<Half, kMaxRows / 16> half_centers;
  to_half(scales.data(), half_scales.data(), count);
  if (task.affine) to_half(centers.data(), half_centers.data(), count);
  const int row_stride = task.members_are_depths ? task.group_lines : task.lines;
  const int depth_stride = task.members_are_depths ? task.lines : task.group_lines;
  write_tensor(format, words.data(), {half_scales.data(), row_stride, depth_stride},
               {half_centers.data(), row_stride, depth_stride}, page);
}

}  // namespace

void pack_page(const PageFormat& format, const Half* key, const Half* value, std::byte* page,
               Isa isa) {
  const FitKernels& kernels = fit_kernels(isa);
  pack_tensor(format.key, key, page, kernels);
  pack_tensor(format.value, value, page, kernels);
  const std::size_t used = format.key.bytes + format.value.bytes;
  std::memset(page + used, 0, format.page_bytes - used);
}

}  // namespace kvq
