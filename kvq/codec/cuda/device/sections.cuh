// Codes and parameters in shared memory to the sections of a page (docs/page_format.md). Every
// thread makes whole words of the page, neighbouring threads neighbouring words.
#pragma once

#include "kvq/codec/cuda/device/fit.cuh"

namespace kvq::cuda {

// Not unrolled: addresses of all the loops here would fill the registers.
template <class Function>
__device__ __forceinline__ void for_each_index(unsigned count, Function function) {
#pragma unroll 1
  for (unsigned i = threadIdx.x; i < count; i += blockDim.x) function(i);
}

// Row 16 j + 2 g + r of 64.
__device__ __forceinline__ unsigned row_of(unsigned j, unsigned g, unsigned r) {
  return 16 * j + 2 * g + r;
}

// The row of word `index` of an 8-bit plane's T, t = T % 4.
__device__ __forceinline__ unsigned byte_plane_row(unsigned index, unsigned t) {
  const unsigned chunk = index / 4;  // 8 r + (g ^ 2t)
  return row_of(index % 4, (chunk % 8) ^ (2 * t), chunk / 8);
}

// Word `index` of one T of a plane that holds kWidth bits of every code, from bit `below` up.
// codes: [64 rows], the words of this T
template <int kWidth>
__device__ __forceinline__ unsigned plane_word(const std::uint32_t* codes, int below, unsigned t,
                                               unsigned index) {
  const auto bits = [&](unsigned j, unsigned g, unsigned r) {
    return (codes[row_of(j, g, r)] >> below) & (0x01010101U * ((1U << kWidth) - 1U));
  };
  if constexpr (kWidth == 8) {
    return codes[byte_plane_row(index, t)];
  } else if constexpr (kWidth == 4) {
    const unsigned j = index % 4;
    const unsigned g = index / 4 ^ (2 * t);
    return bits(j, g, 0) | bits(j, g, 1) << 4;
  } else if constexpr (kWidth == 2) {
    const unsigned j = index % 2 * 2;
    const unsigned g = index / 2 ^ (4 * (t / 2));
    return bits(j, g, 0) | bits(j + 1, g, 0) << 2 | bits(j, g, 1) << 4 | bits(j + 1, g, 1) << 6;
  } else {
    unsigned word = 0;
#pragma unroll
    for (unsigned j = 0; j < 4; ++j) word |= bits(j, index, 0) << j | bits(j, index, 1) << (4 + j);
    return word;
  }
}

// codes: [quads][stride]
template <int kWidth>
__device__ __forceinline__ void write_plane(const std::uint32_t* codes, int stride, int below,
                                            unsigned quads, std::uint32_t* out) {
  for_each_index(8 * kWidth * quads, [&](unsigned i) {
    const unsigned quad = i / (8 * kWidth);
    out[i] = plane_word<kWidth>(codes + quad * stride, below, quad % 4, i % (8 * kWidth));
  });
}

__device__ __forceinline__ void write_plane(int width, const std::uint32_t* codes, int stride,
                                            int below, unsigned quads, std::uint32_t* out) {
  if (width == 8) write_plane<8>(codes, stride, below, quads, out);
  if (width == 4) write_plane<4>(codes, stride, below, quads, out);
  if (width == 2) write_plane<2>(codes, stride, below, quads, out);
  if (width == 1) write_plane<1>(codes, stride, below, quads, out);
}

// Five codes 0..2 in every byte: ceil(256 v / 243), v = their base-3 number, first code highest.
__device__ __forceinline__ void write_ternary(const std::uint32_t* codes, int stride, int quads,
                                              std::uint32_t* out) {
  const unsigned groups = quads / 5;
  for_each_index(groups * kPageTokens, [&](unsigned i) {
    const unsigned group = i / kPageTokens;
    const unsigned row = byte_plane_row(i % kPageTokens, group % 4);
    unsigned values = 0;  // at most 242 in a byte: no carry into the next
    for (int k = 0; k < 5; ++k) values = values * 3 + codes[(5 * group + k) * stride + row];
    unsigned word = 0;
    for (int bit = 0; bit < 32; bit += 8) {
      word |= (256 * ((values >> bit) & 0xffU) + 242) / 243 << bit;
    }
    out[i] = word;
  });
  // The rest is a plane of 2 bits, swizzled by its own T.
  out += groups * kPageTokens;
  for_each_index(quads % 5 * 16, [&](unsigned i) {
    const unsigned quad = 5 * groups + i / 16;
    out[i] = plane_word<2>(codes + quad * stride, 0, quad % 4, i % 16);
  });
}

__device__ __forceinline__ void copy_words(const void* from, void* to, int bytes) {
  for_each_index(bytes / 4, [&](unsigned i) {
    static_cast<std::uint32_t*>(to)[i] = static_cast<const std::uint32_t*>(from)[i];
  });
}

__device__ __forceinline__ void clear_words(void* to, int bytes) {
  for_each_index(bytes / 4, [&](unsigned i) { static_cast<std::uint32_t*>(to)[i] = 0; });
}

__device__ __forceinline__ void write_sections(const PackTensor& tensor, const PackedParts& parts,
                                               std::byte* page) {
  const int stride = quad_words(tensor.blocks);
  for (int block = 0; block < tensor.blocks; ++block) {
    const std::uint32_t* codes = parts.words + block * kPageTokens;
    auto* out = reinterpret_cast<std::uint32_t*>(page + tensor.planes + block * tensor.block_bytes);
    if (tensor.bits == Bits::kTernary) {
      write_ternary(codes, stride, tensor.quads, out);
      continue;
    }
    write_plane(tensor.low_width, codes, stride, 0, tensor.quads, out);
    write_plane(tensor.high_width, codes, stride, tensor.low_width, tensor.quads,
                out + 8 * tensor.low_width * tensor.quads);
  }
  copy_words(parts.scales, page + tensor.scales, tensor.parameter_bytes);
  if (tensor.affine) copy_words(parts.centers, page + tensor.centers, tensor.parameter_bytes);
}

// 16 bits: K [head_dim][64 tokens], V [block][64 tokens][64 channels], missing channels zero.
__device__ __forceinline__ void write_unquantized(const PackParams& params,
                                                  const PackTensor& tensor, bool is_key,
                                                  const std::uint16_t* rows, std::byte* page) {
  auto* out = reinterpret_cast<std::uint32_t*>(page + tensor.planes);
  const unsigned words = tensor.blocks * tensor.block_bytes / 4;
  const auto number = [&](unsigned token, unsigned channel) {
    return std::uint32_t{rows[token * params.row_token_stride + channel]};
  };
  for_each_index(words, [&](unsigned i) {
    const unsigned major = i / 32;
    const unsigned minor = i % 32 * 2;
    if (is_key) {
      out[i] = number(minor, major) | number(minor + 1, major) << 16;
      return;
    }
    const unsigned token = major % kPageTokens;
    const unsigned channel = major / kPageTokens * 64 + minor;
    out[i] = channel < static_cast<unsigned>(params.head_dim)
                 ? number(token, channel) | number(token, channel + 1) << 16
                 : 0;
  });
}

}  // namespace kvq::cuda
