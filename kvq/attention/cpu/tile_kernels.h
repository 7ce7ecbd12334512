// The tile kernels, written once over a vector type; each instruction set's file defines that type
// in its anonymous namespace (so that no instantiation is shared between files) and fills a
// TileKernels. The vector type V:
//
//   Floats, Words            kWidth lanes of binary32 and of 32-bit words
//   kRows, kVectors          accumulators of multiply(): kRows query rows x kVectors vectors
//   gather<width>(words, i)  words[i[0]], words[i[1]], ... out of the 8 * width words of a quad
//   byte_value<i>(x)         byte i of every word as a float
//   power_of_two(x)          2^n where the low bits of x's representation are n; 0 for n = -127
//
// Cost of expanding 64 rows x 4 depths (one quad) in vectors of W words: 64 / W times a gather, a
// shift and a mask for each plane, then 4 x (byte to word, convert, multiply-add, store).
// Nothing of the standard library is called here: a shared template compiled with these files'
// instruction set could be picked by the linker for the whole program.
#pragma once

#include "kvq/attention/cpu/tile.h"

namespace kvq {

// ---- expansion ----------------------------------------------------------------------------------

// Fields of one plane, moved to bit `kShift` of the code bytes: codes [quads][64 rows]. With a
// kShift > 0 they are added to what codes holds. first_quad is T of the first quad.
template <class V, int kPlaneWidth, int kShift>
void unpack_plane(const std::uint32_t* plane, int first_quad, int quads, std::uint32_t* codes) {
  const PlaneTable& table = plane_table(kPlaneWidth);
  const typename V::Words mask = V::set_words(((1U << kPlaneWidth) - 1) * 0x01010101U);
  for (int quad = 0; quad < quads; ++quad) {
    const std::uint32_t* words = plane + quad * 8 * kPlaneWidth;
    const std::int32_t* index = table.word[(first_quad + quad) & 3];
    std::uint32_t* out = codes + quad * kBlockRows;
    for (int row = 0; row < kBlockRows; row += V::kWidth) {
      typename V::Words x = V::template gather<kPlaneWidth>(words, index + row);
      x = V::bit_and(V::shift_right_each(x, V::load_words(table.bit + row)), mask);
      if constexpr (kShift > 0) {
        x = V::bit_or(V::load_words(out + row), V::template shift_left<kShift>(x));
      }
      V::store_words(out + row, x);
    }
  }
}

// Base-3 bytes: code k of byte b is 3 * (b * 3^k mod 256) / 256. Even and odd bytes are worked on
// apart, in the 16 bits that each then has.
template <class V>
void unpack_ternary(const std::uint32_t* planes, int quads, std::uint32_t* codes) {
  const PlaneTable& table = plane_table(8);
  const typename V::Words byte = V::set_words(0x00ff00ffU);
  const int groups = quads / 5;
  for (int group = 0; group < groups; ++group) {
    for (int row = 0; row < kBlockRows; row += V::kWidth) {
      const typename V::Words x =
          V::template gather<8>(planes + group * 64, table.word[group & 3] + row);
      typename V::Words even = V::bit_and(x, byte);
      typename V::Words odd = V::bit_and(V::template shift_right<8>(x), byte);
      for (int k = 0; k < 5; ++k) {
        even = V::add_words(even, V::add_words(even, even));
        odd = V::add_words(odd, V::add_words(odd, odd));
        const typename V::Words low =
            V::bit_and(V::template shift_right<8>(even), V::set_words(0x00030003U));
        const typename V::Words high = V::bit_and(odd, V::set_words(0x03000300U));
        V::store_words(codes + (5 * group + k) * kBlockRows + row, V::bit_or(low, high));
        even = V::bit_and(even, byte);
        odd = V::bit_and(odd, byte);
      }
    }
  }
  unpack_plane<V, 2, 0>(planes + groups * 64, 5 * groups, quads - 5 * groups,
                        codes + 5 * groups * kBlockRows);
}

// planes: one block. codes [depth / 4][64 rows], byte i of a word is the code of depth 4T + i.
template <class V>
void unpack_codes(Bits bits, const std::byte* planes, int depth, std::uint32_t* codes) {
  const auto* words = reinterpret_cast<const std::uint32_t*>(planes);
  const int quads = depth / 4;
  switch (bits) {
    case Bits::k1:
      return unpack_plane<V, 1, 0>(words, 0, quads, codes);
    case Bits::kTernary:
      return unpack_ternary<V>(words, quads, codes);
    case Bits::k2:
      return unpack_plane<V, 2, 0>(words, 0, quads, codes);
    case Bits::k3:
      unpack_plane<V, 2, 0>(words, 0, quads, codes);
      return unpack_plane<V, 1, 2>(words + 16 * quads, 0, quads, codes);
    case Bits::k4:
      return unpack_plane<V, 4, 0>(words, 0, quads, codes);
    case Bits::k5:
      unpack_plane<V, 4, 0>(words, 0, quads, codes);
      return unpack_plane<V, 1, 4>(words + 32 * quads, 0, quads, codes);
    case Bits::k6:
      unpack_plane<V, 4, 0>(words, 0, quads, codes);
      return unpack_plane<V, 2, 4>(words + 32 * quads, 0, quads, codes);
    case Bits::k8:
      return unpack_plane<V, 8, 0>(words, 0, quads, codes);
    case Bits::k16:
      return;
  }
}

// scratch.scale and scratch.offset of one block, in the order of the plan's index: a code's value
// is scale * code + offset.
template <class V>
void load_parameters(const TilePlan& plan, const std::byte* page, int block, TileScratch& scratch) {
  const TensorFormat& format = plan.format;
  const auto* scales = reinterpret_cast<const std::uint16_t*>(page + format.scales_offset);
  const auto* centers = reinterpret_cast<const std::uint16_t*>(page + format.centers_offset);
  const std::uint16_t* index = plan.index + block * plan.count;
  for (int i = 0; i < plan.count; ++i) scratch.halves[0][i] = scales[index[i]];
  if (plan.affine) {
    for (int i = 0; i < plan.count; ++i) scratch.halves[1][i] = centers[index[i]];
  }
  const typename V::Floats middle = V::set(-plan.middle);
  for (int i = 0; i < plan.count; i += V::kWidth) {
    const typename V::Floats scale = V::load_half(scratch.halves[0] + i);
    const typename V::Floats center =
        plan.affine ? V::load_half(scratch.halves[1] + i) : V::set(0.0F);
    V::store(scratch.scale + i, scale);
    V::store(scratch.offset + i, V::multiply_add(middle, scale, center));
  }
}

// codes [depth / 4][64 rows] -> tile [depth][64 rows].
template <class V, TileParameters kParameters>
void dequantize(const TileScratch& scratch, int depth, int period, float* tile) {
  for (int quad = 0; quad < depth / 4; ++quad) {
    for (int row = 0; row < kBlockRows; row += V::kWidth) {
      const typename V::Words codes = V::load_words(scratch.codes + quad * kBlockRows + row);
      const auto value = [&](int i, typename V::Floats code) {
        const int at = 4 * quad + i;
        typename V::Floats scale;
        typename V::Floats offset;
        if constexpr (kParameters == TileParameters::kRow) {
          scale = V::load(scratch.scale + at / period * kBlockRows + row);
          offset = V::load(scratch.offset + at / period * kBlockRows + row);
        } else {
          const int k = kParameters == TileParameters::kDepth ? at : 4 * at + row / 16;
          scale = V::set(scratch.scale[k]);
          offset = V::set(scratch.offset[k]);
        }
        V::store(tile + at * kBlockRows + row, V::multiply_add(code, scale, offset));
      };
      value(0, V::template byte_value<0>(codes));
      value(1, V::template byte_value<1>(codes));
      value(2, V::template byte_value<2>(codes));
      value(3, V::template byte_value<3>(codes));
    }
  }
}

template <class V>
void expand(const TilePlan& plan, const std::byte* page, int block, TileScratch& scratch,
            float* tile) {
  const TensorFormat& format = plan.format;
  const int depth = format.depth;
  const std::byte* planes = page + format.planes_offset + block * format.block_bytes;
  if (plan.parameters == TileParameters::kNone) {
    const auto* halves = reinterpret_cast<const std::uint16_t*>(planes);
    for (int i = 0; i < depth * kBlockRows; i += V::kWidth) {
      V::store(tile + i, V::load_half(halves + i));
    }
    return;
  }
  unpack_codes<V>(format.spec.bits, planes, depth, scratch.codes);
  load_parameters<V>(plan, page, block, scratch);
  switch (plan.parameters) {
    case TileParameters::kDepth:
      return dequantize<V, TileParameters::kDepth>(scratch, depth, plan.period, tile);
    case TileParameters::kQuarter:
      return dequantize<V, TileParameters::kQuarter>(scratch, depth, plan.period, tile);
    default:
      return dequantize<V, TileParameters::kRow>(scratch, depth, plan.period, tile);
  }
}

// ---- exact rows ---------------------------------------------------------------------------------

// `tokens` rows, up to kWidth, fp16 with a stride of head_dim, to columns of tile [head_dim][64].
template <class V>
void transpose_tokens(const Half* rows, int head_dim, int tokens, float* tile) {
  for (int channel = 0; channel < head_dim; channel += V::kWidth) {
    typename V::Floats x[V::kWidth];
    for (int i = 0; i < V::kWidth; ++i) {
      const auto* row = reinterpret_cast<const std::uint16_t*>(rows + i * head_dim + channel);
      x[i] = i < tokens ? V::load_half(row) : V::set(0.0F);
    }
    V::transpose(x);
    for (int i = 0; i < V::kWidth; ++i) V::store(tile + (channel + i) * kBlockRows, x[i]);
  }
}

template <class V>
void exact_key(const Half* rows, int head_dim, int count, float* tile) {
  const int padded = (count + 15) / 16 * 16;
  for (int token = 0; token < padded; token += V::kWidth) {
    transpose_tokens<V>(rows + token * head_dim, head_dim, count - token, tile + token);
  }
}

template <class V>
void exact_value(const Half* rows, int head_dim, int count, float* tile) {
  const int padded = (count + 15) / 16 * 16;
  for (int token = 0; token < padded; ++token) {
    const auto* row = reinterpret_cast<const std::uint16_t*>(rows + token * head_dim);
    for (int channel = 0; channel < head_dim; channel += V::kWidth) {
      const int block = channel / kBlockRows;
      V::store(tile + (block * kBlockRows + token) * kBlockRows + channel % kBlockRows,
               token < count ? V::load_half(row + channel) : V::set(0.0F));
    }
  }
}

// ---- products -----------------------------------------------------------------------------------

// kRows x (kVectors * kWidth) of c in registers over the whole depth.
template <class V, int kRows, int kVectors>
void multiply_block(const float* a, int a_stride, const float* b, int depth, float* c, int c_stride,
                    const float* rescale) {
  typename V::Floats sum[kRows][kVectors];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      sum[r][v] = rescale == nullptr
                      ? V::set(0.0F)
                      : V::multiply(V::load(c + r * c_stride + v * V::kWidth), V::set(rescale[r]));
    }
  }
  for (int k = 0; k < depth; ++k) {
    typename V::Floats column[kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) column[v] = V::load(b + k * kBlockRows + v * V::kWidth);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const typename V::Floats x = V::set(a[r * a_stride + k]);
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) sum[r][v] = V::multiply_add(x, column[v], sum[r][v]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) V::store(c + r * c_stride + v * V::kWidth, sum[r][v]);
  }
}

// The rows that are left over after blocks of kRows + 1.
template <class V, int kRows, int kVectors>
void multiply_rest(const float* a, int a_stride, const float* b, int depth, float* c, int c_stride,
                   int rows, const float* rescale) {
  if constexpr (kRows > 0) {
    if (rows == kRows) {
      multiply_block<V, kRows, kVectors>(a, a_stride, b, depth, c, c_stride, rescale);
    } else {
      multiply_rest<V, kRows - 1, kVectors>(a, a_stride, b, depth, c, c_stride, rows, rescale);
    }
  }
}

template <class V, int kVectors>
void multiply_rows(const float* a, int a_stride, const float* b, int depth, float* c, int c_stride,
                   int rows, const float* rescale) {
  int r = 0;
  for (; r + V::kRows <= rows; r += V::kRows) {
    multiply_block<V, V::kRows, kVectors>(a + r * a_stride, a_stride, b, depth, c + r * c_stride,
                                          c_stride, rescale == nullptr ? nullptr : rescale + r);
  }
  multiply_rest<V, V::kRows - 1, kVectors>(a + r * a_stride, a_stride, b, depth, c + r * c_stride,
                                           c_stride, rows - r,
                                           rescale == nullptr ? nullptr : rescale + r);
}

template <class V>
void multiply(const float* a, int a_stride, const float* b, int depth, int columns, float* c,
              int c_stride, int rows, const float* rescale) {
  constexpr int kPanel = V::kVectors * V::kWidth;
  if constexpr (kPanel == kBlockRows) {
    constexpr int kStep = V::kVectors / 4;
    switch (columns / 16) {
      case 1:
        return multiply_rows<V, kStep>(a, a_stride, b, depth, c, c_stride, rows, rescale);
      case 2:
        return multiply_rows<V, 2 * kStep>(a, a_stride, b, depth, c, c_stride, rows, rescale);
      case 3:
        return multiply_rows<V, 3 * kStep>(a, a_stride, b, depth, c, c_stride, rows, rescale);
      default:
        return multiply_rows<V, 4 * kStep>(a, a_stride, b, depth, c, c_stride, rows, rescale);
    }
  } else {
    static_assert(16 % kPanel == 0);
    for (int column = 0; column < columns; column += kPanel) {
      multiply_rows<V, V::kVectors>(a, a_stride, b + column, depth, c + column, c_stride, rows,
                                    rescale);
    }
  }
}

// ---- softmax ------------------------------------------------------------------------------------

// 2^x for x <= 0, relative error 1e-7; 0 below -126.5. Adding 1.5 * 2^23 rounds x to an integer n
// and leaves n in the low bits; the rest, within [-0.5, 0.5], goes through a polynomial (minimax,
// relative error 7.5e-8).
template <class V>
typename V::Floats exp2_of(typename V::Floats x) {
  const typename V::Floats magic = V::set(12582912.0F);
  x = V::max(x, V::set(-127.0F));
  const typename V::Floats shifted = V::add(x, magic);
  const typename V::Floats f = V::subtract(x, V::subtract(shifted, magic));
  typename V::Floats y = V::set(1.327647198e-03F);
  y = V::multiply_add(y, f, V::set(9.675541334e-03F));
  y = V::multiply_add(y, f, V::set(5.550713274e-02F));
  y = V::multiply_add(y, f, V::set(2.402211972e-01F));
  y = V::multiply_add(y, f, V::set(6.931469671e-01F));
  y = V::multiply_add(y, f, V::set(1.000000072e+00F));
  return V::multiply(y, V::power_of_two(shifted));
}

template <class V>
void softmax(float* scores, const int* visible, int columns, int rows, float* maximum, float* sum,
             float* rescale) {
  for (int r = 0; r < rows; ++r) {
    float* row = scores + r * kBlockRows;
    for (int c = visible[r]; c < columns; ++c) row[c] = -__builtin_inff();
    typename V::Floats largest = V::load(row);
    for (int c = V::kWidth; c < columns; c += V::kWidth)
      largest = V::max(largest, V::load(row + c));
    rescale[r] = maximum[r];
    const float strip_maximum = V::reduce_max(largest);
    if (strip_maximum > maximum[r]) maximum[r] = strip_maximum;
  }
  for (int r = 0; r < rows; r += V::kWidth) {
    V::store(rescale + r, exp2_of<V>(V::subtract(V::load(rescale + r), V::load(maximum + r))));
  }
  for (int r = 0; r < rows; ++r) {
    float* row = scores + r * kBlockRows;
    const typename V::Floats top = V::set(maximum[r]);
    typename V::Floats total = V::set(0.0F);
    for (int c = 0; c < columns; c += V::kWidth) {
      const typename V::Floats weight = exp2_of<V>(V::subtract(V::load(row + c), top));
      V::store(row + c, weight);
      total = V::add(total, weight);
    }
    sum[r] = sum[r] * rescale[r] + V::reduce_add(total);
  }
}

template <class V>
constexpr TileKernels make_tile_kernels() {
  return {expand<V>, exact_key<V>, exact_value<V>, multiply<V>, softmax<V>};
}

}  // namespace kvq
