// Every kernel is bound by its loads and stores, and at decode by being launched: one block of
// threads a row where rows are reduced, one thread for four numbers elsewhere.
#include <cuda_fp16.h>

#include <algorithm>

#include "kvq/base/cuda/overlapped_launch.cuh"
#include "kvq/runtime/cuda/row_kernels.h"

namespace kvq::cuda {
namespace {

constexpr int kThreads = 256;
// Of a block that reduces a long row: as many loads at a time as a decode step has few rows.
constexpr int kRowThreads = 1024;
constexpr unsigned kAllLanes = 0xffffffffU;

int blocks_for(std::size_t items) {
  constexpr std::size_t kMostBlocks = 132 * 16;
  return static_cast<int>(
      std::clamp<std::size_t>((items + kThreads - 1) / kThreads, 1, kMostBlocks));
}

__device__ float warp_sum(float value) {
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) {
    value += __shfl_xor_sync(kAllLanes, value, distance);
  }
  return value;
}

// The sum over a block of kCount threads, for all of them.
template <int kCount>
__device__ float block_sum(float value) {
  __shared__ float sums[kCount / 32];
  value = warp_sum(value);
  if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = value;
  __syncthreads();
  float total = 0;
#pragma unroll
  for (const float sum : sums) total += sum;
  return total;
}

// Four numbers at `index` of `count`, in one or two terms.
__device__ void store_split(const SplitRows& split, std::size_t count, std::size_t index,
                            const float4& numbers) {
  const float four[4] = {numbers.x, numbers.y, numbers.z, numbers.w};
  __nv_bfloat16 high[4];
  __nv_bfloat16 low[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    // With a second term the first is cut, so that the second has the remaining bits, one sign.
    high[i] = split.terms > 1 ? __float2bfloat16_rz(four[i]) : __float2bfloat16_rn(four[i]);
    low[i] = __float2bfloat16_rn(four[i] - __bfloat162float(high[i]));
  }
  *reinterpret_cast<uint2*>(split.data + index) = *reinterpret_cast<const uint2*>(high);
  if (split.terms > 1) {
    *reinterpret_cast<uint2*>(split.data + count + index) = *reinterpret_cast<const uint2*>(low);
  }
}

__device__ float4 load_four(const float* source) {
  return *reinterpret_cast<const float4*>(source);
}

__device__ float4 operator+(const float4& a, const float4& b) {
  return {a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w};
}

// Numbers `index` .. index + 3 of a product, in columns `column` .. column + 3.
__device__ float4 load_four(const ProductTerms& product, std::size_t index, int column) {
  float4 sum = load_four(product.high + index);
  if (product.low != nullptr) sum = sum + load_four(product.low + index);
  if (product.bias != nullptr) sum = sum + load_four(product.bias + column);
  return sum;
}
__device__ float load_one(const ProductTerms& product, std::size_t index, int column) {
  float sum = product.high[index];
  if (product.low != nullptr) sum += product.low[index];
  if (product.bias != nullptr) sum += product.bias[column];
  return sum;
}

// A thread keeps its first four numbers between the two passes over a row, and has their weights
// before the kernel's turn: all of a row of up to 4 kCount numbers.
template <int kCount>
__global__ void __launch_bounds__(kCount) rms_norm_kernel(const RmsNormCall call) {
  const int begin = 4 * static_cast<int>(threadIdx.x);
  float4 first_weight{};
  if (begin < call.width) first_weight = load_four(call.weight + begin);
  allow_kernel_behind();
  wait_for_kernel_before();
  const std::size_t row = blockIdx.x;
  float* const input = call.input + row * call.width;
  float4 first{};
  float squares = 0;
  for (int i = begin; i < call.width; i += 4 * kCount) {
    float4 x{};
    if (call.added.high == nullptr || call.accumulate) x = load_four(input + i);
    if (call.added.high != nullptr) {
      x = x + load_four(call.added, row * call.width + i, i);
      *reinterpret_cast<float4*>(input + i) = x;  // for the next product, and below, by this thread
    }
    if (i == begin) first = x;
    squares += x.x * x.x + x.y * x.y + x.z * x.z + x.w * x.w;
  }
  squares = block_sum<kCount>(squares);
  if (threadIdx.x == 0 && !isfinite(squares)) atomicMin(call.failed, call.check);
  const float scale = 1.0F / sqrtf(squares / static_cast<float>(call.width) + call.epsilon);
  for (int i = begin; i < call.width; i += 4 * kCount) {
    const float4 x = i == begin ? first : load_four(input + i);
    const float4 w = i == begin ? first_weight : load_four(call.weight + i);
    const float4 y = {x.x * scale * w.x, x.y * scale * w.y, x.z * scale * w.z, x.w * scale * w.w};
    *reinterpret_cast<float4*>(call.output + row * call.width + i) = y;
    if (call.split.data != nullptr) {
      store_split(call.split, static_cast<std::size_t>(call.rows) * call.width,
                  row * call.width + i, y);
    }
  }
}

// A warp a head of a row: pairs (i, i + head_dim / 2) are rotated by the row's angles.
__global__ void __launch_bounds__(kThreads) split_heads_kernel(const SplitHeadsCall call) {
  allow_kernel_behind();
  wait_for_kernel_before();
  const int warp = static_cast<int>((blockIdx.x * kThreads + threadIdx.x) / 32);
  const int lane = static_cast<int>(threadIdx.x % 32);
  const int heads = call.query_heads + 2 * call.kv_heads;
  const int row = warp / heads;
  const int head = warp - row * heads;
  if (row >= call.rows) return;
  const int half = call.head_dim / 2;
  const std::size_t source = static_cast<std::size_t>(warp) * call.head_dim;
  const auto load = [&](int i) {
    return load_one(call.fused, source + i, head * call.head_dim + i);
  };
  const int key = head - call.query_heads;
  const int value = key - call.kv_heads;
  float* target;
  if (value >= 0) {
    target = call.value + (static_cast<std::int64_t>(row) * call.kv_heads + value) * call.head_dim;
    for (int i = lane; i < call.head_dim; i += 32) target[i] = load(i);
    return;
  }
  target =
      key >= 0
          ? call.key + (static_cast<std::int64_t>(row) * call.kv_heads + key) * call.head_dim
          : call.query + (static_cast<std::int64_t>(row) * call.query_heads + head) * call.head_dim;
  const float* const norm = key >= 0 ? call.key_norm : call.query_norm;
  float scale = 1;
  if (norm != nullptr) {
    float squares = 0;
    for (int i = lane; i < call.head_dim; i += 32) squares += load(i) * load(i);
    squares = warp_sum(squares);
    scale = 1.0F / sqrtf(squares / static_cast<float>(call.head_dim) + call.norm_epsilon);
  }
  const float* const cosine = call.cosine + static_cast<std::int64_t>(row) * half;
  const float* const sine = call.sine + static_cast<std::int64_t>(row) * half;
  for (int i = lane; i < half; i += 32) {
    float first = load(i);
    float second = load(i + half);
    if (norm != nullptr) {
      first = first * scale * norm[i];
      second = second * scale * norm[i + half];
    }
    target[i] = first * cosine[i] - second * sine[i];
    target[i + half] = second * cosine[i] + first * sine[i];
  }
}

__device__ float silu(float x) { return x / (1.0F + expf(-x)); }

__global__ void __launch_bounds__(kThreads) silu_kernel(const SiluCall call) {
  allow_kernel_behind();
  wait_for_kernel_before();
  const std::size_t row = blockIdx.y;
  const int i = 4 * static_cast<int>(blockIdx.x * kThreads + threadIdx.x);
  if (i >= call.width) return;
  const std::size_t gate = row * 2 * call.width + i;
  const float4 g = load_four(call.fused, gate, i);
  const float4 u = load_four(call.fused, gate + call.width, i + call.width);
  const float4 y = {silu(g.x) * u.x, silu(g.y) * u.y, silu(g.z) * u.z, silu(g.w) * u.w};
  const std::size_t index = row * call.width + i;
  *reinterpret_cast<float4*>(call.output + index) = y;
  if (call.split.data != nullptr) {
    store_split(call.split, static_cast<std::size_t>(call.rows) * call.width, index, y);
  }
}

__global__ void __launch_bounds__(kThreads)
    split_kernel(const float* input, std::size_t count, SplitRows split) {
  const std::size_t step = std::size_t{4} * kThreads * gridDim.x;
  for (std::size_t i = std::size_t{4} * (blockIdx.x * kThreads + threadIdx.x); i < count;
       i += step) {
    store_split(split, count, i, load_four(input + i));
  }
}

__global__ void __launch_bounds__(kThreads) finish_product_kernel(const FinishProductCall call) {
  allow_kernel_behind();
  wait_for_kernel_before();
  const std::size_t count = static_cast<std::size_t>(call.rows) * call.width;
  for (std::size_t i = blockIdx.x * kThreads + threadIdx.x; i < count;
       i += std::size_t{kThreads} * gridDim.x) {
    const int column = static_cast<int>(i % call.width);
    float sum = 0;
    if (call.product.high != nullptr) {
      sum = load_one(call.product, i, column);
    } else if (call.product.bias != nullptr) {
      sum = call.product.bias[column];
    }
    if (call.accumulate) sum += call.output[i];
    call.output[i] = sum;
  }
}

__device__ float to_number(float value) { return value; }
__device__ float to_number(__half value) { return __half2float(value); }
__device__ float to_number(__nv_bfloat16 value) { return __bfloat162float(value); }

template <typename Number>
__global__ void __launch_bounds__(kThreads)
    gather_kernel(const Number* table, const std::int32_t* rows, int width, float* output) {
  const Number* const source = table + static_cast<std::int64_t>(rows[blockIdx.x]) * width;
  float* const target = output + static_cast<std::int64_t>(blockIdx.x) * width;
  for (int i = static_cast<int>(threadIdx.x); i < width; i += kThreads) {
    target[i] = to_number(source[i]);
  }
}

__global__ void __launch_bounds__(kThreads)
    rotary_kernel(const std::int64_t* positions, const float* frequencies, int count, int half,
                  float* cosine, float* sine) {
  const int index = static_cast<int>(blockIdx.x * kThreads + threadIdx.x);
  if (index >= count * half) return;
  const float angle = static_cast<float>(positions[index / half]) * frequencies[index % half];
  cosine[index] = cosf(angle);
  sine[index] = sinf(angle);
}

__global__ void __launch_bounds__(kThreads)
    finite_kernel(const float* values, std::size_t count, int check, std::int32_t* failed) {
  bool finite = true;
  for (std::size_t i = blockIdx.x * kThreads + threadIdx.x; i < count;
       i += std::size_t{kThreads} * gridDim.x) {
    finite = finite && isfinite(values[i]);
  }
  if (!finite) atomicMin(failed, check);
}

__device__ void store_number(float* to, float value) { *to = value; }
__device__ void store_number(__half* to, float value) { *to = __float2half_rn(value); }
__device__ void store_number(__nv_bfloat16* to, float value) { *to = __float2bfloat16_rn(value); }

// splitmix64 of the index.
template <typename Number>
__global__ void __launch_bounds__(kThreads)
    random_kernel(Number* data, std::size_t count, float range, std::uint64_t seed) {
  for (std::size_t i = blockIdx.x * kThreads + threadIdx.x; i < count;
       i += std::size_t{kThreads} * gridDim.x) {
    std::uint64_t z = seed + (i + 1) * 0x9e3779b97f4a7c15ULL;
    z = (z ^ (z >> 30U)) * 0xbf58476d1ce4e5b9ULL;
    z = (z ^ (z >> 27U)) * 0x94d049bb133111ebULL;
    const auto bits = static_cast<std::uint32_t>(z >> 40U);  // 24
    store_number(data + i, (static_cast<float>(bits) * 0x1p-23F - 1) * range);
  }
}

__global__ void __launch_bounds__(kRowThreads)
    largest_kernel(const float* values, int width, std::int32_t* index) {
  const float* const row = values + static_cast<std::int64_t>(blockIdx.x) * width;
  // The larger number wins, of equal ones the one that stands first: as one unsigned comparison.
  unsigned long long best = 0;
  for (int i = static_cast<int>(threadIdx.x); i < width; i += kRowThreads) {
    const unsigned bits = __float_as_uint(row[i] + 0.0F);  // -0 is 0
    const unsigned order = (bits & 0x80000000U) != 0 ? ~bits : bits | 0x80000000U;
    const auto key = static_cast<unsigned long long>(order) << 32U | (0xffffffffU - i);
    best = max(best, key);
  }
  __shared__ unsigned long long all;
  if (threadIdx.x == 0) all = 0;
  __syncthreads();
  atomicMax(&all, best);
  __syncthreads();
  if (threadIdx.x == 0) index[blockIdx.x] = static_cast<std::int32_t>(0xffffffffU - all);
}

}  // namespace

cudaError_t rms_norm(const RmsNormCall& call, cudaStream_t stream) {
  return call.width > 4 * kThreads ? launch_overlapped(rms_norm_kernel<kRowThreads>,
                                                       dim3(call.rows), kRowThreads, call, stream)
                                   : launch_overlapped(rms_norm_kernel<kThreads>, dim3(call.rows),
                                                       kThreads, call, stream);
}

cudaError_t split_heads(const SplitHeadsCall& call, cudaStream_t stream) {
  const int warps = call.rows * (call.query_heads + 2 * call.kv_heads);
  return launch_overlapped(split_heads_kernel, dim3((warps + kThreads / 32 - 1) / (kThreads / 32)),
                           kThreads, call, stream);
}

cudaError_t silu_multiply(const SiluCall& call, cudaStream_t stream) {
  const dim3 grid((call.width / 4 + kThreads - 1) / kThreads, call.rows);
  return launch_overlapped(silu_kernel, grid, kThreads, call, stream);
}

cudaError_t split_rows(const float* input, std::size_t count, SplitRows split,
                       cudaStream_t stream) {
  split_kernel<<<blocks_for(count / 4), kThreads, 0, stream>>>(input, count, split);
  return cudaGetLastError();
}

cudaError_t finish_product(const FinishProductCall& call, cudaStream_t stream) {
  const std::size_t count = static_cast<std::size_t>(call.rows) * call.width;
  return launch_overlapped(finish_product_kernel, dim3(blocks_for(count)), kThreads, call, stream);
}

cudaError_t gather_rows(NumberType type, const void* table, const std::int32_t* rows, int count,
                        int width, float* output, cudaStream_t stream) {
  switch (type) {
    case NumberType::kFloat32:
      gather_kernel<<<count, kThreads, 0, stream>>>(static_cast<const float*>(table), rows, width,
                                                    output);
      break;
    case NumberType::kFloat16:
      gather_kernel<<<count, kThreads, 0, stream>>>(static_cast<const __half*>(table), rows, width,
                                                    output);
      break;
    case NumberType::kBFloat16:
      gather_kernel<<<count, kThreads, 0, stream>>>(static_cast<const __nv_bfloat16*>(table), rows,
                                                    width, output);
      break;
  }
  return cudaGetLastError();
}

cudaError_t rotary_table(const std::int64_t* positions, const float* frequencies, int count,
                         int half, float* cosine, float* sine, cudaStream_t stream) {
  const int blocks = (count * half + kThreads - 1) / kThreads;
  rotary_kernel<<<blocks, kThreads, 0, stream>>>(positions, frequencies, count, half, cosine, sine);
  return cudaGetLastError();
}

cudaError_t all_finite(const float* values, std::size_t count, int check, std::int32_t* failed,
                       cudaStream_t stream) {
  finite_kernel<<<blocks_for(count), kThreads, 0, stream>>>(values, count, check, failed);
  return cudaGetLastError();
}

cudaError_t fill_random(NumberType type, void* data, std::size_t count, float deviation,
                        std::uint64_t seed, cudaStream_t stream) {
  const float range = deviation * 1.7320508F;  // of an even distribution
  const int blocks = blocks_for(count);
  switch (type) {
    case NumberType::kFloat32:
      random_kernel<<<blocks, kThreads, 0, stream>>>(static_cast<float*>(data), count, range, seed);
      break;
    case NumberType::kFloat16:
      random_kernel<<<blocks, kThreads, 0, stream>>>(static_cast<__half*>(data), count, range,
                                                     seed);
      break;
    case NumberType::kBFloat16:
      random_kernel<<<blocks, kThreads, 0, stream>>>(static_cast<__nv_bfloat16*>(data), count,
                                                     range, seed);
      break;
  }
  return cudaGetLastError();
}

cudaError_t largest(const float* values, int rows, int width, std::int32_t* index,
                    cudaStream_t stream) {
  largest_kernel<<<rows, kRowThreads, 0, stream>>>(values, width, index);
  return cudaGetLastError();
}

}  // namespace kvq::cuda
