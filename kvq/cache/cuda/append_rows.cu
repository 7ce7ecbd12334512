// Four numbers a thread: block (row, part) writes a part of the keys and values of all kv heads of
// a row of the pass. Cost: reads 4 or 8 and writes 4 bytes a key and value number pair; a decode
// step of 64 sequences moves less than a megabyte a layer, so that the launch and one chain of
// loads are what it costs.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "kvq/base/cuda/overlapped_launch.cuh"
#include "kvq/cache/cuda/append_rows.h"
#include "kvq/cache/cuda/block_unit.h"
#include "kvq/codec/bits.h"

namespace kvq::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kNumbers = 4;  // a thread

enum Kind : unsigned { kNan, kInfinity, kMinusInfinity, kAbove, kBelow };

__device__ unsigned kind_of(float number) {
  if (isnan(number)) return kNan;
  if (isinf(number)) return number > 0 ? kInfinity : kMinusInfinity;
  return number > 0 ? kAbove : kBelow;
}

__device__ float4 four_numbers(const float* from) { return *reinterpret_cast<const float4*>(from); }

__device__ float4 four_numbers(const __half* from) {
  const uint2 bits = *reinterpret_cast<const uint2*>(from);
  const float2 low = __half22float2(reinterpret_cast<const __half2&>(bits.x));
  const float2 high = __half22float2(reinterpret_cast<const __half2&>(bits.y));
  return {low.x, low.y, high.x, high.y};
}

__device__ float4 four_numbers(const __nv_bfloat16* from) {
  const uint2 bits = *reinterpret_cast<const uint2*>(from);
  return {__uint_as_float(bits.x << 16), __uint_as_float(bits.x & 0xffff0000U),
          __uint_as_float(bits.y << 16), __uint_as_float(bits.y & 0xffff0000U)};
}

template <typename Number>
__global__ void __launch_bounds__(kThreads) append_kernel(const AppendRows batch) {
  allow_kernel_behind();
  wait_for_kernel_before();
  const int row = static_cast<int>(blockIdx.x);
  const RowPlace place = batch.places[row];
  const bool is_sink = place.row < 0;
  const int capacity = is_sink ? batch.sinks : kPageTokens;
  const int token = is_sink ? -1 - place.row : place.row;
  __half* const target =
      reinterpret_cast<__half*>(batch.base + static_cast<std::int64_t>(place.block) * kBlockUnit +
                                (is_sink ? batch.sink_offset : batch.row_offset));
  const int width = batch.kv_heads * batch.head_dim;
  const int at = kNumbers * static_cast<int>(blockIdx.y * kThreads + threadIdx.x);
  if (at >= 2 * width) return;
  const bool is_value = at >= width;
  const int index = is_value ? at - width : at;
  const int head = index / batch.head_dim;
  const int channel = index - head * batch.head_dim;
  const RowStrides strides = is_value ? batch.value_strides : batch.key_strides;
  const int sequence = row / batch.tokens;
  const auto* source = static_cast<const Number*>(is_value ? batch.value : batch.key);
  source += sequence * strides.sequence + (row - sequence * batch.tokens) * strides.token;
  const float4 numbers = four_numbers(source + head * strides.head + channel);
  const __half2 low = __floats2half2_rn(numbers.x, numbers.y);
  const __half2 high = __floats2half2_rn(numbers.z, numbers.w);
  const std::int64_t head_row =
      (static_cast<std::int64_t>(is_value ? batch.kv_heads : 0) + head) * capacity + token;
  __half2* const to = reinterpret_cast<__half2*>(target + head_row * batch.head_dim + channel);
  to[0] = low;
  to[1] = high;
  const float four[kNumbers] = {numbers.x, numbers.y, numbers.z, numbers.w};
#pragma unroll
  for (int i = 0; i < kNumbers; ++i) {
    if (__hisinf(__float2half_rn(four[i])) == 0 && !isnan(four[i])) continue;
    const BadNumber found =
        static_cast<BadNumber>(batch.layer) << 44U | static_cast<BadNumber>(row) << 24U |
        static_cast<BadNumber>(is_value) << 23U | static_cast<BadNumber>(head) << 11U |
        static_cast<BadNumber>(channel + i) << 3U | kind_of(four[i]);
    atomicMin(batch.bad, found);
  }
}

}  // namespace

cudaError_t append_rows(const AppendRows& batch, cudaStream_t stream) {
  const int numbers = 2 * batch.kv_heads * batch.head_dim;
  const dim3 grid(batch.rows, (numbers + kNumbers * kThreads - 1) / (kNumbers * kThreads));
  void (*kernel)(AppendRows) = append_kernel<float>;
  if (batch.type == NumberType::kFloat16) kernel = append_kernel<__half>;
  if (batch.type == NumberType::kBFloat16) kernel = append_kernel<__nv_bfloat16>;
  return launch_overlapped(kernel, grid, kThreads, batch, stream);
}

}  // namespace kvq::cuda
