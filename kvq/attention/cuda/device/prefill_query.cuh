// The query rows of a lane as operands of products.
#pragma once

#include <cuda_bf16.h>

#include "kvq/attention/cuda/device/prefill_barrier.cuh"
#include "kvq/attention/cuda/device/prefill_rotation.cuh"
#include "kvq/attention/cuda/device/prefill_tile.cuh"

namespace kvq::cuda {

// The rows of a warpgroup are operands A in registers, or, if those are scarce, in shared memory.
template <int kBlocks>
inline constexpr bool kQueryInRegisters = kBlocks <= 2;

// A row is divided by a power of two, so that no number of it exceeds 1 (before rotation); the
// scores are multiplied with `factor` in return.
template <int kBlocks>
struct QueryRows {
  std::uint32_t a[kQueryInRegisters<kBlocks> ? 4 * kBlocks : 1][4];  // rows g, g + 8 of a warp
  std::uint32_t shared;  // or the address of kBlocks blocks [64 rows][64 channels]
  float factor[2];       // brings scores of rows g, g + 8 to units of log2

  // C += rows x keys, depths 16 step .. of all.
  __device__ __forceinline__ void multiply_step(BlockC& c, BlockAddress keys, int step) const {
    const BlockAddress b = advance(keys, step / 4, step % 4);
    if constexpr (kQueryInRegisters<kBlocks>) {
      multiply(c, a[step], b, step > 0);
    } else {
      multiply_shared(c, advance(block_address(shared), step / 4, step % 4), b, step > 0);
    }
  }
  // Channels 64 block + 8 n + 2 t, + 1 of row g + 8 h.
  __device__ __forceinline__ void set_pair(int block, int n, int h, Lane lane, std::uint32_t pair) {
    if constexpr (kQueryInRegisters<kBlocks>) {
      a[4 * block + n / 2][h + 2 * (n % 2)] = pair;
    } else {
      const int row = 16 * static_cast<int>(threadIdx.x / 32 % 4) + lane.g + 8 * h;
      const std::uint32_t address =
          shared + block * kTileBlockBytes + piece_offset(row, n) + 4 * lane.t;
      asm volatile("st.shared.u32 [%0], %1;" ::"r"(address), "r"(pair) : "memory");
    }
  }
  // All pairs of the warpgroup (the only one) are set.
  __device__ __forceinline__ void finish() const {
    if constexpr (!kQueryInRegisters<kBlocks>) {
      publish_to_products();
      synchronize_group<GroupBarrier::kQueries>();
    }
  }
};

// Index of a row of the tile in query and output, the last row's beyond the end.
__device__ __forceinline__ std::int64_t query_index(const PrefillParams& params,
                                                    const PrefillTile& tile, int row) {
  const int chunk_row = min(tile.first_row + row, tile.chunk_rows - 1);
  const int token = chunk_row / params.heads;
  const int head = tile.kv_head * params.heads + chunk_row - token * params.heads;
  return ((static_cast<std::int64_t>(tile.query_start) + token) * params.kv_heads * params.heads +
          head) *
         params.head_dim;
}

// Multiplies the lane's rows with a power of two each and sets their factors.
template <int kBlocks>
__device__ __forceinline__ void normalize(float score_scale, BlockC (&x)[kBlocks],
                                          float (&factor)[2]) {
  float greatest[2] = {0, 0};
#pragma unroll
  for (int block = 0; block < kBlocks; ++block) {
#pragma unroll
    for (int i = 0; i < 32; ++i) {
      greatest[i / 2 % 2] = fmaxf(greatest[i / 2 % 2], fabsf(x[block][i]));
    }
  }
  float scale[2];
#pragma unroll
  for (int h = 0; h < 2; ++h) {
#pragma unroll
    for (int distance = 1; distance <= 2; distance *= 2) {
      greatest[h] = fmaxf(greatest[h], __shfl_xor_sync(0xffffffffU, greatest[h], distance));
    }
    const int exponent = static_cast<int>(__float_as_uint(greatest[h]) >> 23) - 126;
    const int bounded = min(max(exponent, -100), 100);
    scale[h] = __uint_as_float(static_cast<unsigned>(127 - bounded) << 23);
    factor[h] = score_scale * __uint_as_float(static_cast<unsigned>(127 + bounded) << 23);
  }
#pragma unroll
  for (int block = 0; block < kBlocks; ++block) {
#pragma unroll
    for (int i = 0; i < 32; ++i) x[block][i] *= scale[i / 2 % 2];
  }
}

// Depths 0 .. 3 of each four become 0, 2, 1, 3, as packed keys have them; a pair is a lane's
// neighbours 2t, 2t + 1.
__device__ __forceinline__ std::uint32_t even_depths_first(std::uint32_t pair, Lane lane) {
  const std::uint32_t other = __shfl_xor_sync(0xffffffffU, pair, 1);
  return __byte_perm(pair, other, (lane.t & 1) ? 0x3276 : 0x5410);
}

// Channels 64 block + 8 n + 2 t, + 1 of row g + 8 h to x[block][4 n + 2 h], + 1; zeros beyond
// head_dim. The type is asked for once, so that all loads are under way together.
template <int kBlocks>
__device__ __forceinline__ void load_rows(const PrefillParams& params,
                                          const std::int64_t (&rows)[2], Lane lane,
                                          BlockC (&x)[kBlocks]) {
  const auto for_each_pair = [&](auto body) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
#pragma unroll
      for (int i = 0; i < 8 * kBlocks; ++i) {
        body(x[i / 8][i % 8 * 4 + 2 * h], x[i / 8][i % 8 * 4 + 2 * h + 1], h, 8 * i);
      }
    }
  };
  if (params.query_type == NumberType::kFloat32) {
    for_each_pair([&](float& low, float& high, int h, int channel) {
      const float* const row = static_cast<const float*>(params.query) + rows[h] + 2 * lane.t;
      float2 pair = {0, 0};
      if (channel < params.head_dim) pair = *reinterpret_cast<const float2*>(row + channel);
      low = pair.x;
      high = pair.y;
    });
    return;
  }
  for_each_pair([&](float& low, float&, int h, int channel) {
    const auto* const row = static_cast<const std::uint16_t*>(params.query) + rows[h] + 2 * lane.t;
    std::uint32_t pair = 0;
    if (channel < params.head_dim) pair = *reinterpret_cast<const std::uint32_t*>(row + channel);
    low = __uint_as_float(pair);
  });
  const bool is_half = params.query_type == NumberType::kFloat16;
  for_each_pair([&](float& low, float& high, int, int) {
    const std::uint32_t pair = __float_as_uint(low);
    const float2 half = __half22float2(pair_of(pair));
    low = is_half ? half.x : __uint_as_float(pair << 16);
    high = is_half ? half.y : __uint_as_float(pair & 0xffff0000U);
  });
}

// For products with packed keys, or with exact ones. row: of the tile, the lane's first.
template <int kBlocks>
__device__ __forceinline__ void load_query(const PrefillParams& params, const PrefillTile& tile,
                                           int row, bool packed, Lane lane,
                                           QueryRows<kBlocks>& query) {
  BlockC x[kBlocks];
  load_rows(params, {query_index(params, tile, row), query_index(params, tile, row + 8)}, lane, x);
  normalize(packed ? params.score_scale * params.key.unit : params.score_scale, x, query.factor);
  if (packed && params.key_rotation > 1) rotate_rows(x, params.key_rotation, lane);
#pragma unroll
  for (int block = 0; block < kBlocks; ++block) {
#pragma unroll
    for (int i = 0; i < 32; i += 2) {
      std::uint32_t pair = pack(x[block][i], x[block][i + 1]);
      if (packed) pair = even_depths_first(pair, lane);
      query.set_pair(block, i / 4, i / 2 % 2, lane, pair);
    }
  }
  query.finish();
}

}  // namespace kvq::cuda
