// Packed codes to fp16 tiles in shared memory, by the warps of one warpgroup.
//
// K becomes blocks of [64 tokens][64 channels], V blocks of [64 channels][64 tokens], in the order
// of prefill_product.cuh: page blocks are rows x depth already, so both are the same function. Step
// s of all steps (16 depths of 64 rows) is a quarter of block s / 4.
//
// A field is a subnormal fp16 number (codes.cuh). One multiply-add with constants makes it
// (code - middle) / 512, exactly, another one with scale * 64 and center / 8 an eighth of the
// number that the code stands for, rounded once. Eighths keep 64 times a scale in range up to
// scales of 1,000; numbers below 1 / 2048 lose bits. The factor 8 goes into the scale of scores,
// into sums of values.
//
// Cost of a step (1,024 codes), 4 bits: 20 + 1 for the fields, 32 multiply-adds, 8 stores of 8
// bytes, about 25 for parameters and addresses; 16 more for values.
//
// Fields come as depths (0, 2) and (1, 3) of four neighbours. Keys stay so: the channels of a query
// are put in the same order. Values are put back: their depth is the token.
#pragma once

#include "kvq/attention/cuda/device/codes.cuh"
#include "kvq/attention/cuda/device/prefill_product.cuh"
#include "kvq/attention/cuda/device/prefill_tile.cuh"

namespace kvq::cuda {

// fp16 bits of a pair of 2^exponent, -14 <= exponent <= 15.
__host__ __device__ constexpr std::uint32_t pair_of_powers(int exponent) {
  return static_cast<std::uint32_t>(exponent + 15) << 10 | static_cast<std::uint32_t>(exponent + 15)
                                                               << 26;
}

// (code - middle) / 512 of both halves; the code's lowest bit is bit `power` of each.
template <Bits kBits>
__device__ __forceinline__ std::uint32_t centered(std::uint32_t field, int power) {
  constexpr std::uint32_t kMiddle = half_of(levels(kBits) - 1) - (9U << 10);
  constexpr std::uint32_t kMinusMiddle = (kMiddle | 0x8000U) * 0x00010001U;
  return bits_of(
      __hfma2(pair_of(field), pair_of(pair_of_powers(15 - power)), pair_of(kMinusMiddle)));
}

// Scales or centers, times a power of two, of what a lane unpacks in one step: load_tile(j), then
// pair(j, k) for the k-th pair of FragmentA of row tile j. Depth-wise: one for each depth.
class DepthWiseParameters {
 public:
  static constexpr bool kAlwaysSymmetric = false;

  __device__ __forceinline__ DepthWiseParameters(std::uint32_t section, const PackedTensor& layout,
                                                 int block, int step, Lane lane, int exponent)
      : factor_(pair_of_powers(exponent)),
        first_row_(64 * block),
        log_group_rows_(layout.log_group_rows) {
    const int x = step & ((2 << layout.log_group_depth) - 1);
    const int piece = step >> (1 + layout.log_group_depth);
    // A parameter for four depths is half a word; one for each depth comes in two words.
    const bool halves = layout.log_group_depth == 2;
    select_ = !halves ? 0x3210 : (x & 1) ? 0x3232 : 0x1010;
    odd_depths_ = layout.log_group_depth == 0 ? 8 : 0;
    run_ = section + 64 * piece * layout.row_groups + 16 * lane.t + 4 * (halves ? x >> 1 : x);
  }
  __device__ __forceinline__ void load_tile(int j) {
    if (j > 0 && log_group_rows_ >= 6) return;
    const std::uint32_t run = run_ + 64 * ((first_row_ + 16 * j) >> log_group_rows_);
    words_[0] = multiply(__byte_perm(load_shared_4(run), 0, select_), factor_);
    words_[1] = multiply(__byte_perm(load_shared_4(run + odd_depths_), 0, select_), factor_);
  }
  __device__ __forceinline__ std::uint32_t pair(int, int k) const { return words_[k >> 1]; }

 private:
  std::uint32_t factor_;
  int first_row_;
  int log_group_rows_;
  std::uint32_t select_;
  std::uint32_t odd_depths_;
  std::uint32_t run_;
  std::uint32_t words_[2];  // depths 0 and 2, 1 and 3
};

// Row-wise: one for each row.
class RowWiseParameters {
 public:
  static constexpr bool kAlwaysSymmetric = false;

  __device__ __forceinline__ RowWiseParameters(std::uint32_t section, const PackedTensor& layout,
                                               int block, int step, Lane lane, int exponent) {
    const int vector = block * layout.depth_groups + (16 * step >> layout.log_group_depth);
    const std::uint32_t address = section + vector * (128 >> layout.log_group_rows);
    if (layout.log_group_rows == 0) {
      const uint4 words = load_shared_16(address + 16 * lane.g);
      words_[0] = words.x;
      words_[1] = words.y;
      words_[2] = words.z;
      words_[3] = words.w;
    } else {
      const uint2 words =
          load_shared_8(address + 8 * (layout.log_group_rows == 1 ? lane.g : lane.g >> 1));
#pragma unroll
      for (int j = 0; j < 4; ++j) words_[j] = __byte_perm(words.x, words.y, j * 0x2222 + 0x1010);
    }
#pragma unroll
    for (int j = 0; j < 4; ++j) words_[j] = multiply(words_[j], pair_of_powers(exponent));
  }
  __device__ __forceinline__ void load_tile(int) {}
  __device__ __forceinline__ std::uint32_t pair(int j, int k) const {
    return __byte_perm(words_[j], 0, (k & 1) ? 0x3232 : 0x1010);
  }

 private:
  std::uint32_t words_[4];  // rows 2g, 2g + 1 of each tile
};

// The usual ones. Depth-wise: one for each depth and 64 rows. Row-wise: one for each row and 64
// depths.
class PlainDepthWiseParameters {
 public:
  static constexpr bool kAlwaysSymmetric = true;

  __device__ __forceinline__ PlainDepthWiseParameters(std::uint32_t section,
                                                      const PackedTensor& layout, int block,
                                                      int step, Lane lane, int exponent) {
    const std::uint32_t run =
        section + 64 * ((step >> 1) * layout.row_groups + block) + 16 * lane.t + 4 * (step & 1);
    words_[0] = multiply(load_shared_4(run), pair_of_powers(exponent));
    words_[1] = multiply(load_shared_4(run + 8), pair_of_powers(exponent));
  }
  __device__ __forceinline__ void load_tile(int) {}
  __device__ __forceinline__ std::uint32_t pair(int, int k) const { return words_[k >> 1]; }

 private:
  std::uint32_t words_[2];
};

class PlainRowWiseParameters {
 public:
  static constexpr bool kAlwaysSymmetric = true;

  __device__ __forceinline__ PlainRowWiseParameters(std::uint32_t section,
                                                    const PackedTensor& layout, int block, int step,
                                                    Lane lane, int exponent) {
    const uint4 words =
        load_shared_16(section + 128 * (block * layout.depth_groups + (step >> 2)) + 16 * lane.g);
    words_[0] = multiply(words.x, pair_of_powers(exponent));
    words_[1] = multiply(words.y, pair_of_powers(exponent));
    words_[2] = multiply(words.z, pair_of_powers(exponent));
    words_[3] = multiply(words.w, pair_of_powers(exponent));
  }
  __device__ __forceinline__ void load_tile(int) {}
  __device__ __forceinline__ std::uint32_t pair(int j, int k) const {
    return __byte_perm(words_[j], 0, (k & 1) ? 0x3232 : 0x1010);
  }

 private:
  std::uint32_t words_[4];
};

// Where a lane's rows 2g and 2g + 1 of a step go; row tile j follows after 2,048 j bytes.
struct StepTarget {
  std::uint32_t row[2];

  // k as in FragmentA: rows 2g, 2g + 1 at depths 0 and 2, then at 1 and 3.
  template <bool kKey>
  __device__ __forceinline__ void store(int tile, const FragmentA& a) const {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      if constexpr (kKey) {
        store_shared_8(row[r] + 2048 * tile, make_uint2(a[r], a[r + 2]));
      } else {
        store_shared_8(row[r] + 2048 * tile, make_uint2(__byte_perm(a[r], a[r + 2], 0x5410),
                                                        __byte_perm(a[r], a[r + 2], 0x7632)));
      }
    }
  }
};

// One step of packed codes.
template <Bits kBits, bool kKey, class Parameters>
__device__ __forceinline__ void convert_step(const PackedTensor& layout, std::uint32_t part,
                                             int block, int step, Lane lane, FragmentA (&a)[4],
                                             const StepTarget& target) {
  Parameters scales(part + layout.scales, layout, block, step, lane, 9 - kUnpackedPower);
  const auto code = [&](int j, int k) {
    return centered<kBits>(a[j][k], Codes<kBits>::power(j, k & 1));
  };
  if (!Parameters::kAlwaysSymmetric && layout.affine) {
    Parameters centers(part + layout.centers, layout, block, step, lane, -kUnpackedPower);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      scales.load_tile(j);
      centers.load_tile(j);
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        a[j][k] = bits_of(
            __hfma2(pair_of(code(j, k)), pair_of(scales.pair(j, k)), pair_of(centers.pair(j, k))));
      }
      target.store<kKey>(j, a[j]);
    }
  } else {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      scales.load_tile(j);
#pragma unroll
      for (int k = 0; k < 4; ++k) a[j][k] = multiply(code(j, k), scales.pair(j, k));
      target.store<kKey>(j, a[j]);
    }
  }
}

// This warp's steps of the K or V part of a page at shared address `part`, to the tile at `tile`.
template <Bits kBits, bool kKey, class Parameters>
__device__ __forceinline__ void unpack_steps(const PackedTensor& layout, std::uint32_t part,
                                             int warp, Lane lane, std::uint32_t tile) {
#pragma unroll 1
  for (int i = warp; i < layout.block_steps; i += kUnpackWarps) {
    const int block = kKey ? 0 : i >> 2;
    const int step = kKey ? i : i & 3;
    const std::uint32_t first = tile + (i >> 2) * kTileBlockBytes + 8 * (lane.t & 1);
    const int piece = 2 * (i & 3) + lane.t / 2;
    const StepTarget target = {
        {first + piece_offset(2 * lane.g, piece), first + piece_offset(2 * lane.g + 1, piece)}};
    FragmentA a[4];
    Codes<kBits>::load(part + block * layout.block_bytes, step, layout.steps, lane, a);
    if constexpr (kBits == Bits::k16) {
#pragma unroll
      for (int j = 0; j < 4; ++j) target.store<kKey>(j, a[j]);
    } else {
      convert_step<kBits, kKey, Parameters>(layout, part, block, step, lane, a, target);
    }
  }
}

}  // namespace kvq::cuda
