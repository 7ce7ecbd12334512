#include "kvq/codec/cuda/packer.h"

#include <algorithm>
#include <bit>

#include "kvq/base/cuda/memory.h"
#include "kvq/codec/cuda/kernel.h"
#include "kvq/codec/fit_candidates.inl"

namespace kvq::cuda {
namespace {

constexpr float kRounder = 12582912.0F;  // 1.5 * 2^23

constexpr bool few_candidates() {
  for (const int levels : {2, 3, 4, 8, 16, 32, 64, 256}) {
    for (const Candidates c : {affine_candidates(levels), symmetric_candidates(levels)}) {
      if (c.end - c.begin > kMaxCandidates) return false;
    }
  }
  return true;
}
static_assert(few_candidates());
static_assert(sizeof(PackParams) <= 4096, "the most that a kernel takes");

CodeUnits units_of(int levels) {
  CodeUnits units{};
  units.codes_a_unit = 1.0F;
  while (units.codes_a_unit < static_cast<float>(levels - 1)) units.codes_a_unit *= 2.0F;
  units.unit = 1.0F / units.codes_a_unit;
  units.last = static_cast<float>(levels - 1) * units.unit;
  units.middle = 0.5F * units.last;
  units.rounder = kRounder * units.unit;
  units.top = (kRounder + static_cast<float>(levels - 1)) * units.unit;
  return units;
}

void set_fit(PackTensor& tensor, const TensorSpec& spec) {
  const int levels = kvq::levels(spec.bits);
  tensor.affine = spec.parameters == Parameters::kAffine;
  tensor.mean_square = spec.fit == Fit::kMeanSquare;
  tensor.half_quadratic = spec.fit == Fit::kHqq;
  tensor.last_code = static_cast<float>(levels - 1);
  tensor.middle_code = middle(spec.bits);
  tensor.units = units_of(levels);
  const Candidates candidates =
      tensor.affine ? affine_candidates(levels) : symmetric_candidates(levels);
  for (const Candidate* c = candidates.begin; c != candidates.end; ++c) {
    tensor.ratio[tensor.candidate_count] = c->ratio;
    tensor.offset[tensor.candidate_count] = c->of_mean ? 1.0F : c->offset;
    ++tensor.candidate_count;
  }
}

// 1 / sqrt(length), as the CPU rounds it.
float rotation_scale(int length) {
  float scale = 1.0F;
  for (; length >= 4; length /= 4) scale *= 0.5F;
  return length == 2 ? 0.70710678118654752440F * scale : scale;
}

void set_rotation(PackTensor& tensor, const TensorFormat& format) {
  const bool rotated = format.spec.rotation == Rotation::kHadamard;
  tensor.rotation = rotated ? hadamard_block(format.head_dim) : 1;
  tensor.rotation_scale = rotation_scale(tensor.rotation);
}

// Eight lines and four members are read at once: token strides of 4 modulo 8 and of 8 modulo 16
// put them into 32 banks.
void set_lines(PackTensor& tensor, const TensorFormat& format) {
  const bool token_axis = format.spec.axis == Axis::kToken;
  tensor.members_are_depths = format.is_key == token_axis;
  tensor.token_stride = format.head_dim + (token_axis ? 4 : 8);
  tensor.member_stride = token_axis ? 1 : tensor.token_stride;
  tensor.line_stride = token_axis ? tensor.token_stride : 1;
  tensor.members = token_axis ? format.head_dim : kPageTokens;
  tensor.lines = token_axis ? kPageTokens : format.head_dim;
  tensor.group_members = tensor.members_are_depths ? format.group_depth : format.group_rows;
  tensor.group_lines = tensor.members_are_depths ? format.group_rows : format.group_depth;
  tensor.log2_group_lines = std::countr_zero(static_cast<unsigned>(tensor.group_lines));
}

void set_parameters(PackTensor& tensor, const TensorFormat& format) {
  const int rows = format.is_key ? kPageTokens : format.head_dim;
  for (int row = 0; row < rows; row += format.group_rows) {
    tensor.row_offset[row / format.group_rows] =
        static_cast<std::uint16_t>(parameter_row_offset(format, row));
  }
  for (int depth = 0; depth < format.depth; depth += format.group_depth) {
    tensor.depth_offset[depth / format.group_depth] =
        static_cast<std::uint16_t>(parameter_depth_offset(format, depth));
  }
  tensor.parameter_bytes = static_cast<int>(format.centers_offset - format.scales_offset);
}

PackTensor tensor_of(const TensorFormat& format) {
  PackTensor tensor{};
  tensor.bits = format.spec.bits;
  tensor.blocks = format.blocks;
  tensor.quads = format.depth / 4;
  tensor.block_bytes = static_cast<int>(format.block_bytes);
  tensor.planes = static_cast<int>(format.planes_offset);
  tensor.scales = static_cast<int>(format.scales_offset);
  tensor.centers = static_cast<int>(format.centers_offset);
  if (format.spec.bits == Bits::k16) return tensor;
  const auto [low, high] = planes(format.spec.bits);
  tensor.low_width = low;
  tensor.high_width = high;
  set_fit(tensor, format.spec);
  set_rotation(tensor, format);
  set_lines(tensor, format);
  set_parameters(tensor, format);
  return tensor;
}

}  // namespace

Result<Packer> Packer::create(const PageFormat& format, int kv_heads) {
  if (kv_heads < 1) return fail("packing: kv_heads: expected at least 1, found {}", kv_heads);
  Packer packer;
  PackParams& params = packer.params_;
  params.kv_heads = kv_heads;
  params.head_dim = format.head_dim();
  params.padding = static_cast<std::int32_t>(format.key.bytes + format.value.bytes);
  params.padding_bytes = static_cast<std::int32_t>(format.page_bytes) - params.padding;
  params.tensors[0] = tensor_of(format.key);
  params.tensors[1] = tensor_of(format.value);
  packer.page_bytes_ = static_cast<std::int64_t>(format.page_bytes);
  int words = 0;
  int parameters = 0;
  for (const PackTensor& tensor : params.tensors) {
    params.words = std::max(params.words, 4 * kPageTokens * tensor.token_stride);
    if (tensor.bits == Bits::k16) continue;
    words = std::max(words, 4 * tensor.quads * quad_words(tensor.blocks));
    parameters = std::max(parameters, 2 * tensor.parameter_bytes);
  }
  params.parameters = params.words + words;
  packer.shared_bytes_ = params.parameters + parameters;

  KVQ_RETURN_IF_ERROR(packer.choose_launch());
  return packer;
}

Status Packer::choose_launch() {
  int device = 0;
  int limit = 0;
  KVQ_RETURN_IF_ERROR(check(cudaGetDevice(&device), "no device"));
  KVQ_RETURN_IF_ERROR(check(
      cudaDeviceGetAttribute(&multiprocessors_, cudaDevAttrMultiProcessorCount, device), "device"));
  KVQ_RETURN_IF_ERROR(check(
      cudaDeviceGetAttribute(&limit, cudaDevAttrMaxSharedMemoryPerBlockOptin, device), "device"));
  // For every Packer, whatever its formats need.
  KVQ_RETURN_IF_ERROR(
      check(cudaFuncSetAttribute(pack_kernel(), cudaFuncAttributeMaxDynamicSharedMemorySize, limit),
            "shared memory of the packing kernel"));
  for (const int threads : {kMaxPackThreads, kPackThreads}) {
    int blocks = 0;
    KVQ_RETURN_IF_ERROR(
        check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(
                  &blocks, pack_kernel(), threads, static_cast<std::size_t>(shared_bytes_)),
              "occupancy of the packing kernel"));
    if (blocks < 1) {
      return fail("packing: expected {} bytes of shared memory for a block, found {}",
                  shared_bytes_, limit);
    }
    if (blocks * multiprocessors_ * threads < blocks_ * threads_) continue;
    threads_ = threads;
    blocks_ = blocks * multiprocessors_;
  }
  return {};
}

Status Packer::run(const PackBatch& batch, cudaStream_t stream) const {
  if (batch.max_jobs < 1) {
    return fail("packing: max_jobs: expected at least 1, found {}", batch.max_jobs);
  }
  if (batch.row_head_stride % 8 != 0 || batch.row_token_stride % 8 != 0) {
    return fail("packing: expected row strides in multiples of 8 numbers, found {} and {}",
                batch.row_head_stride, batch.row_token_stride);
  }
  if (batch.page_head_stride % static_cast<std::int64_t>(kPageAlignment) != 0) {
    return fail("packing: expected a page stride in multiples of {} bytes, found {}",
                kPageAlignment, batch.page_head_stride);
  }
  PackParams params = params_;
  params.jobs = batch.jobs;
  params.job_count = batch.job_count;
  params.max_jobs = batch.max_jobs;
  const auto or_else = [](std::int64_t stride, std::int64_t contiguous) {
    return stride != 0 ? stride : contiguous;
  };
  params.row_token_stride = or_else(batch.row_token_stride, params.head_dim);
  params.row_head_stride =
      or_else(batch.row_head_stride, kPageTokens * static_cast<std::int64_t>(params.head_dim));
  params.page_head_stride = or_else(batch.page_head_stride, page_bytes_);
  const std::int64_t items = std::int64_t{2} * params.kv_heads * params.max_jobs;
  const auto blocks = static_cast<unsigned>(std::min<std::int64_t>(items, blocks_));
  const int threads = items <= multiprocessors_ ? kMaxPackThreads : threads_;
  void* arguments[] = {&params};
  return check(cudaLaunchKernel(pack_kernel(), dim3(blocks), dim3(static_cast<unsigned>(threads)),
                                arguments, static_cast<std::size_t>(shared_bytes_), stream),
               "packing");
}

}  // namespace kvq::cuda
