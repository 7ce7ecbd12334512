// The matrix instruction m16n8k16 and what its operands are made of.
//
// Lane 4g + t (g = 0..7, t = 0..3) of a warp holds of
//   A [16 rows x 16 depths]   a[0] row 2g, depths 4t, 4t+2      a[1] row 2g+1, the same depths
//                             a[2] row 2g, depths 4t+1, 4t+3    a[3] row 2g+1, the same depths
//   B [16 depths x 8 columns] b[0] depths 4t, 4t+2 of column g  b[1] depths 4t+1, 4t+3
//   C [16 rows x 8 columns]   c[0], c[1] row 2g, columns 2t, 2t+1    c[2], c[3] row 2g+1
// The instruction's own numbering of rows and depths is another one, but any order that A and B (A
// and C) share gives the same sums. This one makes four depths of a lane neighbours (a packed word)
// and turns C, transposed by movmatrix, into a B whose depths are C's rows.
#pragma once

#include <cuda_fp16.h>

#include <cstdint>

namespace kvq::cuda {

struct Lane {
  int index;  // 4g + t
  int g;
  int t;
};

__device__ __forceinline__ Lane this_lane() {
  const int index = static_cast<int>(threadIdx.x % 32);
  return {index, index >> 2, index & 3};
}

using FragmentA = std::uint32_t[4];
using FragmentB = std::uint32_t[2];
using FragmentC = float[4];

// c += a * b
__device__ __forceinline__ void multiply_add(FragmentC& c, const FragmentA& a, std::uint32_t b0,
                                             std::uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
      "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// The 8 x 8 matrix of 16-bit numbers whose row g, columns 2t and 2t+1 a lane holds, transposed.
__device__ __forceinline__ std::uint32_t transpose(std::uint32_t rows) {
  std::uint32_t columns;
  asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(columns) : "r"(rows));
  return columns;
}

__device__ __forceinline__ std::uint32_t bits_of(__half2 pair) {
  return *reinterpret_cast<std::uint32_t*>(&pair);
}
__device__ __forceinline__ __half2 pair_of(std::uint32_t bits) {
  return *reinterpret_cast<__half2*>(&bits);
}
__device__ __forceinline__ std::uint32_t pack(float low, float high) {
  return bits_of(__floats2half2_rn(low, high));
}
__device__ __forceinline__ std::uint32_t multiply(std::uint32_t a, std::uint32_t b) {
  return bits_of(__hmul2(pair_of(a), pair_of(b)));
}

__device__ __forceinline__ float exp2_fast(float x) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}

// 2^exponent, -126 <= exponent <= 127.
__device__ __forceinline__ float power_of_two(int exponent) {
  return __uint_as_float(static_cast<unsigned>(127 + exponent) << 23);
}

// Loads from shared memory by address; volatile, so that they stay behind the wait for their page.
__device__ __forceinline__ uint4 load_shared_16(std::uint32_t address) {
  uint4 w;
  asm volatile("ld.shared.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(w.x), "=r"(w.y), "=r"(w.z), "=r"(w.w)
               : "r"(address));
  return w;
}
__device__ __forceinline__ uint2 load_shared_8(std::uint32_t address) {
  uint2 w;
  asm volatile("ld.shared.v2.u32 {%0,%1}, [%2];" : "=r"(w.x), "=r"(w.y) : "r"(address));
  return w;
}
__device__ __forceinline__ void store_shared_16(std::uint32_t address, uint4 w) {
  asm volatile("st.shared.v4.u32 [%0], {%1,%2,%3,%4};" ::"r"(address), "r"(w.x), "r"(w.y), "r"(w.z),
               "r"(w.w)
               : "memory");
}
__device__ __forceinline__ void store_shared_8(std::uint32_t address, uint2 w) {
  asm volatile("st.shared.v2.u32 [%0], {%1,%2};" ::"r"(address), "r"(w.x), "r"(w.y) : "memory");
}
__device__ __forceinline__ std::uint32_t load_shared_4(std::uint32_t address) {
  std::uint32_t w;
  asm volatile("ld.shared.u32 %0, [%1];" : "=r"(w) : "r"(address));
  return w;
}

}  // namespace kvq::cuda
