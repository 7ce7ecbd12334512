// A product that reads its weights once, with as many of them under way as memory needs: what
// cuBLASLt does too, but its kernels start to read after the kernel before has ended, and leave
// sums of terms and of pieces to others. Here a block
//
//   asks for its first weights before the kernel before has ended,
//   splits the input's rows into bf16 terms as it reads them,
//   adds up terms, bias and the old output itself.
//
//   block          32 outputs = 2 tiles of 16; its 8 warps take every 8th piece of 64 inputs
//   lane 4g + t    of a piece: inputs 8t .. 8t + 7 and 32 + 8t .. of output rows g and g + 8, and
//   of
//                  operand column g
//
// The matrix instruction's 16 depths may be any 16 inputs, if weights and operand agree: a lane's 8
// consecutive inputs are the depths (2t, 2t + 1, 2t + 8, 2t + 9) of two instructions, so that 16
// bytes of a row are fragments as they are loaded.
//
// Columns of the operand: rows of high terms, then rows of low ones; up to 8.
//
// Cost: a piece of a warp is 4 KiB of weights, 8 loads and 8 matrix instructions, and about 70
// instructions to split; a multiprocessor has 880 slots while memory delivers that.
#include <cstdint>

#include "kvq/base/cuda/overlapped_launch.cuh"
#include "kvq/runtime/cuda/few_rows.h"

namespace kvq::cuda {
namespace {

constexpr int kWarps = 8;
constexpr int kThreads = 32 * kWarps;
constexpr int kTiles = 2;
constexpr int kBlockOutputs = 16 * kTiles;
constexpr int kPieceInputs = 64;
constexpr int kAhead = 2;  // pieces of weights that a warp has under way
// Of longer rows there are few, and blocks of whole rows leave multiprocessors without work.
constexpr int kMaxInputs = 8192;

struct Lane {
  int g;
  int t;
};

__device__ __forceinline__ uint4 load_weights(const __nv_bfloat16* source) {
  uint4 bits;
  asm volatile("ld.global.nc.L1::no_allocate.L2::256B.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(bits.x), "=r"(bits.y), "=r"(bits.z), "=r"(bits.w)
               : "l"(source));
  return bits;
}

// Of a lane, of a piece.
struct WeightPiece {
  uint4 bits[kTiles][2][2];  // [tile][half of the piece][row g, g + 8]

  __device__ __forceinline__ void load(const __nv_bfloat16* source, std::int64_t row_stride) {
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          bits[tile][half][r] = load_weights(source + (16 * tile + 8 * r) * row_stride + 32 * half);
        }
      }
    }
  }
};

enum class Term { kNone, kWhole, kHigh, kLow };

// Two numbers' terms in bf16. High terms are cut, so that the low ones have the remaining bits.
__device__ __forceinline__ std::uint32_t term_of(Term term, float x, float y) {
  if (term == Term::kHigh || term == Term::kLow) {
    const float high_x = __uint_as_float(__float_as_uint(x) & 0xffff0000U);
    const float high_y = __uint_as_float(__float_as_uint(y) & 0xffff0000U);
    x = term == Term::kHigh ? high_x : x - high_x;
    y = term == Term::kHigh ? high_y : y - high_y;
  }
  const __nv_bfloat162 pair = __floats2bfloat162_rn(x, y);
  return reinterpret_cast<const std::uint32_t&>(pair);
}

// Of a lane, of a piece: its inputs of operand column g.
struct InputPiece {
  float4 numbers[2][2];  // [half of the piece][first, last four]

  __device__ __forceinline__ void load(Term term, const float* source) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        numbers[half][i] = float4{};
        if (term != Term::kNone) {
          numbers[half][i] = *reinterpret_cast<const float4*>(source + 32 * half + 4 * i);
        }
      }
    }
  }
};

// sum [16 outputs x 8 columns] += weights, 16 x 16, times operand.
__device__ __forceinline__ void multiply_add(float (&sum)[4], std::uint32_t a0, std::uint32_t a1,
                                             std::uint32_t a2, std::uint32_t a3, std::uint32_t b0,
                                             std::uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

__device__ __forceinline__ void multiply_add(float (&sum)[kTiles][4], const WeightPiece& weights,
                                             const InputPiece& input, Term term) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    std::uint32_t b[4];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float4 x = input.numbers[half][i];
      b[2 * i] = term_of(term, x.x, x.y);
      b[2 * i + 1] = term_of(term, x.z, x.w);
    }
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
      const uint4 upper = weights.bits[tile][half][0];
      const uint4 lower = weights.bits[tile][half][1];
      multiply_add(sum[tile], upper.x, lower.x, upper.y, lower.y, b[0], b[1]);
      multiply_add(sum[tile], upper.z, lower.z, upper.w, lower.w, b[2], b[3]);
    }
  }
}

__device__ __forceinline__ Term term_of_column(const FewRowsCall& call, int column) {
  if (column >= call.rows * call.terms) return Term::kNone;
  if (call.terms == 1) return Term::kWhole;
  return column < call.rows ? Term::kHigh : Term::kLow;
}

// The sums of all warps, and what they are added to.
__device__ __forceinline__ void store_sums(const FewRowsCall& call, int first_output, int warp,
                                           Lane lane, const float (&sum)[kTiles][4]) {
  __shared__ float sums[kWarps][kFewRowsColumns][kBlockOutputs + 4];
#pragma unroll
  for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      sums[warp][2 * lane.t + i % 2][16 * tile + lane.g + 8 * (i / 2)] = sum[tile][i];
    }
  }
  __syncthreads();
  const int row = static_cast<int>(threadIdx.x) / kBlockOutputs;
  const int column = static_cast<int>(threadIdx.x) % kBlockOutputs;
  if (row >= call.rows) return;
  float total = 0;
  for (int term = 0; term < call.terms; ++term) {
#pragma unroll
    for (int w = 0; w < kWarps; ++w) total += sums[w][term * call.rows + row][column];
  }
  const int output = first_output + column;
  if (call.bias != nullptr) total += call.bias[output];
  float* const to = call.output + static_cast<std::int64_t>(row) * call.outputs + output;
  *to = call.accumulate ? *to + total : total;
}

__global__ void __launch_bounds__(kThreads, 2) few_rows_kernel(const FewRowsCall call) {
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const Lane lane = {static_cast<int>(threadIdx.x) % 32 / 4, static_cast<int>(threadIdx.x) % 4};
  const int first_output = static_cast<int>(blockIdx.x) * kBlockOutputs;
  const int pieces = call.inputs / kPieceInputs;
  const __nv_bfloat16* const weights =
      call.weights + static_cast<std::int64_t>(first_output + lane.g) * call.inputs + 8 * lane.t;
  WeightPiece ahead[kAhead];
#pragma unroll
  for (int i = 0; i < kAhead; ++i) {
    const int piece = warp + i * kWarps;
    if (piece < pieces) ahead[i].load(weights + piece * kPieceInputs, call.inputs);
  }
  allow_kernel_behind();
  wait_for_kernel_before();
  const Term term = term_of_column(call, lane.g);
  const float* const input =
      call.input + static_cast<std::int64_t>(lane.g % call.rows) * call.inputs + 8 * lane.t;
  InputPiece operand[2];  // the next one is under way
  if (warp < pieces) operand[0].load(term, input + warp * kPieceInputs);
  float sum[kTiles][4] = {};
  static_assert(kAhead % 2 == 0);
  for (int first = warp; first < pieces; first += kAhead * kWarps) {
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      const int piece = first + i * kWarps;
      if (piece >= pieces) break;
      const int next = piece + kWarps;
      if (next < pieces) operand[(i + 1) % 2].load(term, input + next * kPieceInputs);
      multiply_add(sum, ahead[i], operand[i % 2], term);
      const int later = piece + kAhead * kWarps;
      if (later < pieces) ahead[i].load(weights + later * kPieceInputs, call.inputs);
    }
  }
  store_sums(call, first_output, warp, lane, sum);
}

}  // namespace

bool suits_few_rows(int rows, int terms, int inputs) {
  return rows * terms <= kFewRowsColumns && inputs % kPieceInputs == 0 && inputs <= kMaxInputs;
}

bool suits_few_rows(int rows, int terms, int inputs, int outputs) {
  return suits_few_rows(rows, terms, inputs) && outputs % kBlockOutputs == 0;
}

cudaError_t multiply_few_rows(const FewRowsCall& call, cudaStream_t stream) {
  return launch_overlapped(few_rows_kernel, dim3(call.outputs / kBlockOutputs), kThreads, call,
                           stream);
}

}  // namespace kvq::cuda
