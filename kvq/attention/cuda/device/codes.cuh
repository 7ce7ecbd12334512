// Packed codes as operands of the matrix instruction.
//
// A field of a 16-bit half, masked and left where it is, is the fp16 number code * 2^(bit - 24): a
// subnormal, which the matrix instruction multiplies exactly. A word (byte i = depth 4T + i)
// becomes operands by one shift and one mask each; the field's place in the byte is a power of two
// that later scales take back:
//
//   word  [ d3 | d2 | d1 | d0 ]      & 0x000f000f = depths 0, 2 of row 2g
//                                    & 0x00f000f0 = depths 0, 2 of row 2g+1, times 16
//   word >> 8                        likewise depths 1, 3
//
// Codes<bits>::load() gives the four row tiles (16 j ..) of one step (16 depths) of a block;
// kUnitPower + power(j, r) is the exponent of two of a code 1 in row 16 j + 2 g + r.
//
// Instructions for a step (1,024 codes): 2 bits 20 + 1 load, 4 bits 20 + 1, 8 bits 24 + 2, 3 bits
// 29 + 2, 6 bits 44 + 2, ternary 80 + 2, 16 bits 48 + 16.
#pragma once

#include "kvq/attention/cuda/device/fragments.cuh"
#include "kvq/codec/bits.h"

namespace kvq::cuda {

inline constexpr int kSubnormalPower = -24;

// (low & mask) | (high & ~mask): one instruction.
__device__ __forceinline__ std::uint32_t merge_bits(std::uint32_t low, std::uint32_t high,
                                                    std::uint32_t mask) {
  return (low & mask) | (high & ~mask);
}

__device__ __forceinline__ std::uint32_t shift_left(std::uint32_t word, int count) {
  return count >= 0 ? word << count : word >> -count;
}

// Byte offset of a lane's words of step 0 in a plane; the next step follows after 128 * width.
__device__ __forceinline__ int plane_offset(int width, Lane lane) {
  const auto [index, g, t] = lane;
  switch (width) {
    case 8:
      return 256 * t + 16 * (g ^ (2 * t));
    case 4:
      return 128 * t + 16 * (g ^ (2 * t));
    case 2:
      return 64 * t + 8 * (g ^ (4 * (t >> 1)));
    default:
      return 32 * t + 4 * g;
  }
}

__device__ __forceinline__ void extract(std::uint32_t word, std::uint32_t mask, int row,
                                        FragmentA& a) {
  a[row] = word & mask;
  a[row + 2] = (word >> 8) & mask;
}

// fp16 bits of number / 2, 1 <= number < 2048.
constexpr std::uint32_t half_of(int number) {
  int exponent = 24;  // of 2^9 <= number / 2 < 2^10, biased
  while (number < 1024) {
    number *= 2;
    --exponent;
  }
  return static_cast<std::uint32_t>(exponent << 10 | (number - 1024));
}

// Two fp16 numbers -(levels - 1) / 2.
constexpr std::uint32_t minus_middle_pair(Bits bits) {
  return (half_of(levels(bits) - 1) | 0x8000U) * 0x00010001U;
}

template <Bits kBits>
struct Codes;

struct SubnormalCodes {
  static constexpr int kUnitPower = kSubnormalPower;
};

template <>
struct Codes<Bits::k1> : SubnormalCodes {
  static constexpr int power(int tile, int row) { return 4 * row + tile; }
  __device__ static void load(std::uint32_t block, int step, int, Lane lane, FragmentA (&a)[4]) {
    const std::uint32_t word = load_shared_4(block + plane_offset(1, lane) + 128 * step);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
#pragma unroll
      for (int r = 0; r < 2; ++r) extract(word, 0x00010001U << power(j, r), r, a[j]);
    }
  }
};

template <>
struct Codes<Bits::k2> : SubnormalCodes {
  static constexpr int power(int tile, int row) { return 4 * row + 2 * (tile & 1); }
  __device__ static void load(std::uint32_t block, int step, int, Lane lane, FragmentA (&a)[4]) {
    const uint2 pair = load_shared_8(block + plane_offset(2, lane) + 256 * step);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const std::uint32_t word = j < 2 ? pair.x : pair.y;
#pragma unroll
      for (int r = 0; r < 2; ++r) extract(word, 0x00030003U << power(j, r), r, a[j]);
    }
  }
};

template <>
struct Codes<Bits::k3> : SubnormalCodes {
  static constexpr int power(int, int row) { return 4 * row; }
  __device__ static void load(std::uint32_t block, int step, int steps, Lane lane,
                              FragmentA (&a)[4]) {
    const uint2 pair = load_shared_8(block + plane_offset(2, lane) + 256 * step);
    const std::uint32_t high =
        load_shared_4(block + 256 * steps + plane_offset(1, lane) + 128 * step);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const std::uint32_t low = (j < 2 ? pair.x : pair.y) >> (2 * (j & 1));
      const std::uint32_t word = merge_bits(low, shift_left(high, 2 - j), 0x33333333U);
#pragma unroll
      for (int r = 0; r < 2; ++r) extract(word, 0x00070007U << (4 * r), r, a[j]);
    }
  }
};

template <>
struct Codes<Bits::k4> : SubnormalCodes {
  static constexpr int power(int, int row) { return 4 * row; }
  __device__ static void load(std::uint32_t block, int step, int, Lane lane, FragmentA (&a)[4]) {
    const uint4 words = load_shared_16(block + plane_offset(4, lane) + 512 * step);
    const std::uint32_t word[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
    for (int j = 0; j < 4; ++j) {
#pragma unroll
      for (int r = 0; r < 2; ++r) extract(word[j], 0x000f000fU << (4 * r), r, a[j]);
    }
  }
};

template <>
struct Codes<Bits::k5> : SubnormalCodes {
  static constexpr int power(int, int) { return 0; }
  __device__ static void load(std::uint32_t block, int step, int steps, Lane lane,
                              FragmentA (&a)[4]) {
    const uint4 words = load_shared_16(block + plane_offset(4, lane) + 512 * step);
    const std::uint32_t low[4] = {words.x, words.y, words.z, words.w};
    const std::uint32_t high =
        load_shared_4(block + 512 * steps + plane_offset(1, lane) + 128 * step);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const std::uint32_t word =
            merge_bits(low[j] >> (4 * r), shift_left(high, 4 - 4 * r - j), 0x0f0f0f0fU);
        extract(word, 0x001f001fU, r, a[j]);
      }
    }
  }
};

template <>
struct Codes<Bits::k6> : SubnormalCodes {
  static constexpr int power(int, int) { return 0; }
  __device__ static void load(std::uint32_t block, int step, int steps, Lane lane,
                              FragmentA (&a)[4]) {
    const uint4 words = load_shared_16(block + plane_offset(4, lane) + 512 * step);
    const std::uint32_t low[4] = {words.x, words.y, words.z, words.w};
    const uint2 pair = load_shared_8(block + 512 * steps + plane_offset(2, lane) + 256 * step);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const std::uint32_t high = j < 2 ? pair.x : pair.y;
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const std::uint32_t word =
            merge_bits(low[j] >> (4 * r), shift_left(high, 4 - 4 * r - 2 * (j & 1)), 0x0f0f0f0fU);
        extract(word, 0x003f003fU, r, a[j]);
      }
    }
  }
};

template <>
struct Codes<Bits::k8> : SubnormalCodes {
  static constexpr int power(int, int) { return 0; }
  __device__ static void load(std::uint32_t block, int step, int, Lane lane, FragmentA (&a)[4]) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const uint4 words = load_shared_16(block + plane_offset(8, lane) + 1024 * step + 128 * r);
      const std::uint32_t word[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
      for (int j = 0; j < 4; ++j) extract(word[j], 0x00ff00ffU, r, a[j]);
    }
  }
};

// Five T's share a byte in base 3; which of the five a lane needs depends on t, so it multiplies by
// its own power of 3. The last T's of a block are a plane of 2 bits.
template <>
struct Codes<Bits::kTernary> : SubnormalCodes {
  static constexpr int power(int, int) { return 8; }
  __device__ static void load(std::uint32_t block, int step, int steps, Lane lane,
                              FragmentA (&a)[4]) {
    const int quad = 4 * step + lane.t;
    const int groups = 4 * steps / 5;
    const int group = quad / 5;
    if (4 * step + 3 < 5 * groups || group < groups) {  // the first is known when compiled
      const int digit = quad - 5 * group;
      const std::uint32_t power_of_three = digit == 0   ? 1
                                           : digit == 1 ? 3
                                           : digit == 2 ? 9
                                           : digit == 3 ? 27
                                                        : 81;
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const uint4 words =
            load_shared_16(block + 256 * group + 16 * (8 * r + (lane.g ^ (2 * (group & 3)))));
        const std::uint32_t word[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          a[j][r] = digits(word[j] & 0x00ff00ffU, power_of_three);
          a[j][r + 2] = digits(__byte_perm(word[j], 0, 0x4341), power_of_three);
        }
      }
    } else {
      const uint2 pair = load_shared_8(block + 256 * groups + 64 * (quad - 5 * groups) +
                                       8 * (lane.g ^ (4 * (lane.t >> 1))));
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const std::uint32_t word = j < 2 ? pair.x : pair.y;
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          const int place = 4 * r + 2 * (j & 1);
          a[j][r] = (word << (8 - place)) & 0x03000300U;
          a[j][r + 2] = ((word >> 8) << (8 - place)) & 0x03000300U;
        }
      }
    }
    __syncwarp();
  }
  // 256 * code of both halves' bytes.
  __device__ static std::uint32_t digits(std::uint32_t bytes, std::uint32_t power_of_three) {
    const std::uint32_t rest = (bytes * power_of_three) & 0x00ff00ffU;
    return (3 * rest) & 0x03000300U;
  }
};

// fp16 numbers [depth][64 rows]. All depths start in the same bank, so that lane t takes the row
// tiles in the order t, t + 1, ..: every bank once a load.
template <>
struct Codes<Bits::k16> {
  static constexpr int kUnitPower = 0;
  static constexpr int power(int, int) { return 0; }
  __device__ static void load(std::uint32_t block, int step, int, Lane lane, FragmentA (&a)[4]) {
    std::uint32_t word[4][4];  // [i][j]: rows 16 j + 2 g, + 1 of depth 16 step + 4 t + i
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const std::uint32_t depth = block + 128 * (16 * step + 4 * lane.t + i) + 4 * lane.g;
      std::uint32_t turned[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) turned[j] = load_shared_4(depth + 32 * ((j + lane.t) & 3));
      std::uint32_t half_turned[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) half_turned[j] = (lane.t & 1) ? turned[(j + 3) & 3] : turned[j];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        word[i][j] = (lane.t & 2) ? half_turned[(j + 2) & 3] : half_turned[j];
      }
    }
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      a[j][0] = __byte_perm(word[0][j], word[2][j], 0x5410);
      a[j][1] = __byte_perm(word[0][j], word[2][j], 0x7632);
      a[j][2] = __byte_perm(word[1][j], word[3][j], 0x5410);
      a[j][3] = __byte_perm(word[1][j], word[3][j], 0x7632);
    }
  }
};

}  // namespace kvq::cuda
