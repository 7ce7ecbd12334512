// Products of a warpgroup's 64 rows with blocks of 64 x 64 fp16 numbers in shared memory.
//
//   C [64 rows x 64 columns] += A [64 rows x 16 depths] B [64 columns x 64 depths], a quarter of it
//
// A block holds column after column, 64 depths = 128 bytes each, in the order that the matrix
// instructions of a warpgroup want: the 16-byte piece c of column n lies at 128 n + 16 (c ^ (n %
// 8)). Blocks start at multiples of 1,024 bytes.
//
// Warp w of the group has rows 16 w ..; its lane 4g + t holds
//   A  a[0] row g, depths 2t, 2t+1     a[1] row g+8     a[2] row g, depths 2t+8, 2t+9    a[3] row
//   g+8 C  c[4n], c[4n+1] row g, columns 8n+2t, 8n+2t+1     c[4n+2], c[4n+3] row g+8
// so that C, rounded to pairs, is A of the next product.
//
// With wgmma products run by themselves from commit() to wait(); what they use must not be touched.
// Elsewhere they are done when multiply() returns.
#pragma once

#include "kvq/attention/cuda/device/fragments.cuh"

namespace kvq::cuda {

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define KVQ_WARPGROUP_PRODUCTS 1
#else
#define KVQ_WARPGROUP_PRODUCTS 0
#endif

inline constexpr int kTileBlockBytes = 64 * 128;

using BlockC = float[32];

// Byte offset of 16-byte piece `piece` of column `column`.
__device__ __forceinline__ int piece_offset(int column, int piece) {
  return 128 * column + 16 * (piece ^ (column & 7));
}

// Keeps the compiler from moving uses of registers across this point.
__device__ __forceinline__ void pin(BlockC& c) {
#pragma unroll
  for (int i = 0; i < 32; ++i) asm volatile("" : "+f"(c[i])::"memory");
}

#if KVQ_WARPGROUP_PRODUCTS

__device__ __forceinline__ void begin_products() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
__device__ __forceinline__ void commit_products() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
// All but the newest kPending commits are done.
template <int kPending>
__device__ __forceinline__ void wait_products() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}
// Shared memory that ordinary stores wrote becomes visible to products.
__device__ __forceinline__ void publish_to_products() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// Where a block starts, as matrix instructions take it: the low half of a descriptor, the same in
// all lanes.
using BlockAddress = std::uint32_t;

__device__ __forceinline__ BlockAddress block_address(std::uint32_t shared) {
  return shared >> 4 | 1U << 16;
}
// Address of depths 16 step .. of block number `block`.
__device__ __forceinline__ BlockAddress advance(BlockAddress first, int block, int step) {
  return first + static_cast<std::uint32_t>(kTileBlockBytes * block + 32 * step) / 16;
}

// The high half: 128-byte swizzle, 1,024 bytes from 8 columns to the next 8.
#define KVQ_BLOCK_ORDER "0x40000040"
#define KVQ_BLOCK_C                                                                               \
  "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]), "+f"(c[4]), "+f"(c[5]), "+f"(c[6]), "+f"(c[7]), \
      "+f"(c[8]), "+f"(c[9]), "+f"(c[10]), "+f"(c[11]), "+f"(c[12]), "+f"(c[13]), "+f"(c[14]),    \
      "+f"(c[15]), "+f"(c[16]), "+f"(c[17]), "+f"(c[18]), "+f"(c[19]), "+f"(c[20]), "+f"(c[21]),  \
      "+f"(c[22]), "+f"(c[23]), "+f"(c[24]), "+f"(c[25]), "+f"(c[26]), "+f"(c[27]), "+f"(c[28]),  \
      "+f"(c[29]), "+f"(c[30]), "+f"(c[31])
#define KVQ_BLOCK_C_LIST                                    \
  "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15," \
  "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31}, "

// b: of 16 depths. C starts at zero unless `add`.
__device__ __forceinline__ void multiply(BlockC& c, const std::uint32_t (&a)[4], BlockAddress b,
                                         bool add) {
  asm volatile(
      "{\n.reg .pred p;\n.reg .b64 b;\nsetp.ne.b32 p, %37, 0;\n"
      "mov.b64 b, {%36, " KVQ_BLOCK_ORDER
      "};\n"
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 " KVQ_BLOCK_C_LIST
      "{%32,%33,%34,%35}, b, p, 1, 1, 0;\n}"
      : KVQ_BLOCK_C
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b), "r"(static_cast<std::uint32_t>(add)));
}

// A in shared memory: the warpgroup's 64 rows are the columns of a block.
__device__ __forceinline__ void multiply_shared(BlockC& c, BlockAddress a, BlockAddress b,
                                                bool add) {
  asm volatile(
      "{\n.reg .pred p;\n.reg .b64 a, b;\nsetp.ne.b32 p, %34, 0;\n"
      "mov.b64 a, {%32, " KVQ_BLOCK_ORDER "};\nmov.b64 b, {%33, " KVQ_BLOCK_ORDER
      "};\n"
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 " KVQ_BLOCK_C_LIST
      "a, b, p, 1, 1, 0, 0;\n}"
      : KVQ_BLOCK_C
      : "r"(a), "r"(b), "r"(static_cast<std::uint32_t>(add)));
}

#undef KVQ_BLOCK_C
#undef KVQ_BLOCK_C_LIST
#undef KVQ_BLOCK_ORDER

#else

__device__ __forceinline__ void begin_products() {}
__device__ __forceinline__ void commit_products() {}
template <int kPending>
__device__ __forceinline__ void wait_products() {}
__device__ __forceinline__ void publish_to_products() {}

// Shared address of a block's columns, and the first 16-byte piece of each.
struct BlockAddress {
  std::uint32_t columns;
  int piece;
};

__device__ __forceinline__ BlockAddress block_address(std::uint32_t shared) { return {shared, 0}; }
__device__ __forceinline__ BlockAddress advance(BlockAddress first, int block, int step) {
  return {first.columns + kTileBlockBytes * block, first.piece + 2 * step};
}

__device__ __forceinline__ void load_matrices(std::uint32_t address, std::uint32_t (&matrices)[4]) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(matrices[0]), "=r"(matrices[1]), "=r"(matrices[2]), "=r"(matrices[3])
               : "r"(address)
               : "memory");
}

__device__ __forceinline__ void multiply(BlockC& c, const std::uint32_t (&a)[4], BlockAddress b,
                                         bool add) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  // Lanes 8m .. 8m+7 address the columns of matrix m: columns 0..7 or 8..15, depths 0..7 or 8..15.
  const int column = lane % 8 + lane / 16 * 8;
  const std::uint32_t address = b.columns + piece_offset(column, b.piece + lane / 8 % 2);
#pragma unroll
  for (int n = 0; n < 8; n += 2) {
    std::uint32_t matrices[4];
    load_matrices(address + 1024 * n, matrices);
#pragma unroll
    for (int m = 0; m < 2; ++m) {
      FragmentC sum;
#pragma unroll
      for (int e = 0; e < 4; ++e) sum[e] = add ? c[4 * (n + m) + e] : 0.0F;
      multiply_add(sum, a, matrices[2 * m], matrices[2 * m + 1]);
#pragma unroll
      for (int e = 0; e < 4; ++e) c[4 * (n + m) + e] = sum[e];
    }
  }
}

__device__ __forceinline__ void multiply_shared(BlockC& c, BlockAddress a, BlockAddress b,
                                                bool add) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  const int row = 16 * static_cast<int>(threadIdx.x / 32 % 4) + lane % 16;
  std::uint32_t fragment[4];
  load_matrices(a.columns + piece_offset(row, a.piece + lane / 16), fragment);
  multiply(c, fragment, b, add);
}

#endif

}  // namespace kvq::cuda
