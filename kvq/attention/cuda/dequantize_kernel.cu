// Packed pages and exact rows to plain rows: a block takes the keys or the values of one kv head,
// of the sinks (unit 0) or of 64 tokens behind them.
//
//   page      codes of four depths in a word, scales, centers
//     | four codes a thread and step: scale * (code - middle) + center
//   values    shared memory, [64 tokens][head_dim] floats
//     | the rotation once more is its inverse
//   rows      whole lines, by all threads
//
// Cost: writes 2 to 4 bytes a number and reads less. What attends to the rows afterwards reads them
// again, so that the shortest path through this kernel does not matter.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "kvq/attention/cuda/dequantize_params.h"

namespace kvq::cuda {
namespace {

// plane_field() of codec/page_format.cc: the word of (row, quad) in a plane, and its lowest bit.
__device__ __forceinline__ unsigned plane_codes(const std::uint32_t* plane, int width, unsigned row,
                                                unsigned quad, unsigned swizzle) {
  const unsigned j = row >> 4;
  const unsigned g = row >> 1 & 7;
  const unsigned r = row & 1;
  const unsigned t = swizzle & 3;
  plane += 8 * width * quad;
  if (width == 8) return plane[4 * (8 * r + (g ^ (2 * t))) + j];
  if (width == 4) return plane[4 * (g ^ (2 * t)) + j] >> (4 * r) & 0x0f0f0f0fU;
  if (width == 2) {
    return plane[2 * (g ^ (4 * (t >> 1))) + (j >> 1)] >> (4 * r + 2 * (j & 1)) & 0x03030303U;
  }
  return plane[g] >> (4 * r + j) & 0x01010101U;
}

// Five codes a byte, the first one highest; what is left of the quads is a plane of 2 bits.
__device__ unsigned ternary_codes(const std::uint32_t* block, unsigned quads, unsigned row,
                                  unsigned quad) {
  const unsigned group = quad / 5;
  const unsigned groups = quads / 5;
  if (group == groups) {
    return plane_codes(block + 64 * groups, 2, row, quad - 5 * groups, quad);
  }
  const unsigned bytes = plane_codes(block + 64 * group, 8, row, 0, group);
  unsigned codes = 0;
  for (int shift = 0; shift < 32; shift += 8) {
    unsigned fraction = bytes >> shift & 0xffU;  // of 256: times 3 shifts the next code out
    for (unsigned k = 0; k < quad % 5; ++k) fraction = 3 * fraction & 0xffU;
    codes |= 3 * fraction >> 8 << shift;
  }
  return codes;
}

// The codes of four depths, one a byte.
__device__ __forceinline__ unsigned four_codes(const StoredTensor& tensor, const std::byte* page,
                                               unsigned row, unsigned quad) {
  const unsigned quads = tensor.depth / 4;
  const auto* block =
      reinterpret_cast<const std::uint32_t*>(page + tensor.planes + row / 64 * tensor.block_bytes);
  if (tensor.bits == Bits::kTernary) return ternary_codes(block, quads, row % 64, quad);
  unsigned codes = plane_codes(block, tensor.low_width, row % 64, quad, quad);
  if (tensor.high_width > 0) {
    codes |=
        plane_codes(block + 8 * tensor.low_width * quads, tensor.high_width, row % 64, quad, quad)
        << tensor.low_width;
  }
  return codes;
}

__device__ __forceinline__ float parameter(const std::byte* section, unsigned index) {
  return __half2float(reinterpret_cast<const __half*>(section)[index]);
}

__device__ void unpack(const StoredTensor& tensor, bool is_key, int head_dim, const std::byte* page,
                       float* values) {
  const unsigned quads = tensor.depth / 4;
  for (unsigned i = threadIdx.x; i < tensor.rows * quads; i += blockDim.x) {
    const unsigned row = i / quads;
    const unsigned quad = i % quads;
    const unsigned codes = four_codes(tensor, page, row, quad);
    for (unsigned k = 0; k < 4; ++k) {
      const unsigned depth = 4 * quad + k;
      const unsigned index = tensor.row_offset[row] + tensor.depth_offset[depth];
      const float code = static_cast<float>(codes >> (8 * k) & 0xffU) - tensor.middle;
      const float center = tensor.affine ? parameter(page + tensor.centers, index) : 0.0F;
      values[is_key ? row * head_dim + depth : depth * head_dim + row] =
          parameter(page + tensor.scales, index) * code + center;
    }
  }
}

// 16 bits: K [head_dim][64 tokens], V [block][64 tokens][64 channels].
__device__ void copy_unquantized(const StoredTensor& tensor, bool is_key, int head_dim,
                                 const std::byte* page, float* values) {
  const std::byte* numbers = page + tensor.planes;
  for (int i = static_cast<int>(threadIdx.x); i < kPageTokens * head_dim; i += blockDim.x) {
    const int token = i / head_dim;
    const int channel = i % head_dim;
    values[i] = parameter(
        numbers, is_key ? channel * 64 + token : (channel / 64 * 64 + token) * 64 + channel % 64);
  }
}

__device__ void rotate(const StoredTensor& tensor, int head_dim, float* values) {
  for (int half = 1; half < tensor.rotation; half *= 2) {
    for (int i = static_cast<int>(threadIdx.x); i < kPageTokens * head_dim / 2; i += blockDim.x) {
      const int low = i / half * 2 * half + i % half;
      const float a = values[low];
      const float b = values[low + half];
      values[low] = a + b;
      values[low + half] = a - b;
    }
    __syncthreads();
  }
}

template <typename Number>
__device__ __forceinline__ Number number_of(float value) {
  return static_cast<Number>(value);
}

// source(token, channel) of `count` tokens from position `first` on.
template <typename Number, typename Source>
__device__ void write_rows(const PlainRows& rows, void* start, int sequence, int head, int first,
                           int count, int head_dim, Source source) {
  auto* target = static_cast<Number*>(start) + sequence * rows.sequence_stride +
                 head * rows.head_stride + first * rows.token_stride;
  for (int i = static_cast<int>(threadIdx.x); i < count * head_dim; i += blockDim.x) {
    const int token = i / head_dim;
    target[token * rows.token_stride + i % head_dim] = number_of<Number>(source(i));
  }
}

template <typename Source>
__device__ void write_rows(const DequantizeParams& params, int first, int count, Source source) {
  const int sequence = static_cast<int>(blockIdx.y) / params.kv_heads;
  const int head = static_cast<int>(blockIdx.y) % params.kv_heads;
  const PlainRows& rows = params.rows;
  void* const start = blockIdx.z == 0 ? rows.key : rows.value;
  const int head_dim = params.head_dim;
  if (rows.type == NumberType::kFloat32) {
    write_rows<float>(rows, start, sequence, head, first, count, head_dim, source);
  } else if (rows.type == NumberType::kFloat16) {
    write_rows<__half>(rows, start, sequence, head, first, count, head_dim, source);
  } else {
    write_rows<__nv_bfloat16>(rows, start, sequence, head, first, count, head_dim, source);
  }
}

// `count` rows of exact-row block `block`, to `first` and the positions behind it.
__device__ void copy_exact(const DequantizeParams& params, const RowBlock& blocks,
                           std::int32_t block, int first, int count) {
  const int head = static_cast<int>(blockIdx.y) % params.kv_heads;
  const auto* numbers =
      reinterpret_cast<const __half*>(blockIdx.z == 0 ? blocks.key : blocks.value) +
      block * blocks.sequence_stride + head * blocks.head_stride;
  write_rows(params, first, count, [&](int i) { return __half2float(numbers[i]); });
}

__global__ void __launch_bounds__(kDequantizeThreads)
    dequantize(const __grid_constant__ DequantizeParams params) {
  extern __shared__ float values[];
  const int sequence = static_cast<int>(blockIdx.y) / params.kv_heads;
  const SequenceLength length = params.lengths[sequence];
  const std::int32_t* row_blocks =
      params.row_blocks + sequence * static_cast<std::int64_t>(params.row_blocks_stride);
  if (blockIdx.x == 0) {
    copy_exact(params, params.sinks, row_blocks[0], 0, length.sinks);
    return;
  }
  const int unit = static_cast<int>(blockIdx.x) - 1;
  const int first = length.sinks + unit * kPageTokens;
  if (unit >= length.pages) {
    const int count = length.tail - (unit - length.pages) * kPageTokens;
    if (count <= 0) return;
    // The first block that is listed may be one that this page count no longer reads.
    const std::int32_t* const block = row_blocks + kRowBlocksHeader + unit - row_blocks[1];
    copy_exact(params, params.tail, *block, first, min(count, kPageTokens));
    return;
  }
  const bool is_key = blockIdx.z == 0;
  const StoredTensor& tensor = params.tensors[blockIdx.z];
  const int head_dim = params.head_dim;
  const std::byte* page =
      params.pages +
      params.page_table[sequence * static_cast<std::int64_t>(params.table_stride) + unit] *
          params.page_stride +
      static_cast<int>(blockIdx.y) % params.kv_heads * params.head_stride;
  if (tensor.bits == Bits::k16) {
    copy_unquantized(tensor, is_key, head_dim, page, values);
  } else {
    unpack(tensor, is_key, head_dim, page, values);
  }
  __syncthreads();
  if (tensor.rotation > 1) rotate(tensor, head_dim, values);
  const float scale = tensor.rotation > 1 ? tensor.rotation_scale : 1.0F;
  write_rows(params, first, kPageTokens, [&](int i) { return scale * values[i]; });
}

}  // namespace

const void* dequantize_kernel() { return reinterpret_cast<const void*>(&dequantize); }

}  // namespace kvq::cuda
