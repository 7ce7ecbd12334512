// The packing kernel: a block takes the keys or the values of one page of one kv head at a time.
//
//                                                   instructions a number: k4v2, 128 channels
//   rows, fp16          64 tokens x head_dim, read once
//     | rotate          in registers and by shuffles                       24
//   values, binary32    shared memory, [64][token_stride]
//     | fit             four lanes a line, as codec/fit.h says             114 (minmax: 15)
//     | codes           bytes of words                                     15
//   words, parameters   shared memory
//     | planes          whole words of the page                             5
//   page                written once, all of it
//
// What binds is the rate of instructions: 0.8 of a scheduler's slots, memory waits at 6 %.
//
// Compiled without fused multiply-add: every operation is rounded as the CPU's is.
#include "kvq/codec/cuda/device/sections.cuh"
#include "kvq/codec/cuda/kernel.h"

namespace kvq::cuda {
namespace {

__device__ __forceinline__ void pack_tensor(const PackParams& params, const PackTensor& tensor,
                                            const std::uint16_t* rows, std::byte* page,
                                            std::byte* shared) {
  auto* values = reinterpret_cast<float*>(shared);
  PackedParts parts;
  parts.words = reinterpret_cast<std::uint32_t*>(shared + params.words);
  parts.scales = reinterpret_cast<std::uint16_t*>(shared + params.parameters);
  parts.centers = parts.scales + tensor.parameter_bytes / 2;
  clear_words(parts.scales, 2 * tensor.parameter_bytes);
  if (params.head_dim % kPageTokens != 0) {  // V lacks channels
    clear_words(parts.words, 4 * tensor.quads * quad_words(tensor.blocks));
  }
  load_rows(params, tensor, rows, values);
  __syncthreads();
  fit_tensor(tensor, values, parts);
  __syncthreads();
  write_sections(tensor, parts, page);
  __syncthreads();
}

__global__ void __launch_bounds__(kMaxPackThreads, 2)
    pack_pages(const __grid_constant__ PackParams params) {
  extern __shared__ float4 shared[];
  const int jobs =
      params.job_count == nullptr ? params.max_jobs : min(*params.job_count, params.max_jobs);
  const int items = 2 * params.kv_heads * jobs;
  for (int item = static_cast<int>(blockIdx.x); item < items; item += static_cast<int>(gridDim.x)) {
    const PackJob job = params.jobs[item / (2 * params.kv_heads)];
    if (job.page == nullptr) continue;
    const int head = item / 2 % params.kv_heads;
    const bool is_key = item % 2 == 0;
    const PackTensor& tensor = params.tensors[item % 2];
    const std::uint16_t* rows = (is_key ? job.key : job.value) + head * params.row_head_stride;
    std::byte* page = job.page + head * params.page_head_stride;
    if (!is_key) clear_words(page + params.padding, params.padding_bytes);
    if (tensor.bits == Bits::k16) {
      write_unquantized(params, tensor, is_key, rows, page);
    } else {
      pack_tensor(params, tensor, rows, page, reinterpret_cast<std::byte*>(shared));
    }
  }
}

}  // namespace

const void* pack_kernel() { return reinterpret_cast<const void*>(&pack_pages); }

}  // namespace kvq::cuda
