// Codes and parameters in shared memory to the sections of a page (docs/page_format.md). Every
// thread makes whole words of the page, neighbouring threads neighbouring words.
#pragma once

#include "kvq/codec/cuda/device/fit.cuh"

namespace kvq::cuda {

// `width` bits of every code, from bit `below` up.
struct Field {
  int width;
  int below;
  __device__ __forceinline__ unsigned take(unsigned word) const {
    return (word >> below) & (0x01010101U * ((1U << width) - 1U));
  }
};

// Row 16 j + 2 g + r of 64.
__device__ __forceinline__ int row_of(int j, int g, int r) { return 16 * j + 2 * g + r; }

// The row of word `index` of an 8-bit plane's T, t = T % 4.
__device__ __forceinline__ int byte_plane_row(int index, int t) {
  const int chunk = index / 4;  // 8 r + (g ^ 2t)
  return row_of(index % 4, (chunk % 8) ^ (2 * t), chunk / 8);
}

// Word `index` of one T of a plane.
// codes: [64 rows], the words of this T
__device__ __forceinline__ unsigned plane_word(Field field, const std::uint32_t* codes, int t,
                                               int index) {
  const auto bits = [&](int j, int g, int r) { return field.take(codes[row_of(j, g, r)]); };
  switch (field.width) {
    case 8:
      return codes[byte_plane_row(index, t)];
    case 4: {
      const int j = index % 4;
      const int g = index / 4 ^ (2 * t);
      return bits(j, g, 0) | bits(j, g, 1) << 4;
    }
    case 2: {
      const int j = index % 2 * 2;
      const int g = index / 2 ^ (4 * (t / 2));
      return bits(j, g, 0) | bits(j + 1, g, 0) << 2 | bits(j, g, 1) << 4 | bits(j + 1, g, 1) << 6;
    }
    default: {
      unsigned word = 0;
#pragma unroll
      for (int j = 0; j < 4; ++j) word |= bits(j, index, 0) << j | bits(j, index, 1) << (4 + j);
      return word;
    }
  }
}

// codes: [quads][kQuadWords]
__device__ __forceinline__ void write_plane(Field field, const std::uint32_t* codes, int quads,
                                            std::uint32_t* out) {
  const int quad_words = 8 * field.width;
  for (int i = static_cast<int>(threadIdx.x); i < quads * quad_words; i += kPackThreads) {
    const int quad = i / quad_words;
    out[i] = plane_word(field, codes + quad * kQuadWords, quad % 4, i % quad_words);
  }
}

// Five codes 0..2 in every byte: ceil(256 v / 243), v = their base-3 number, first code highest.
__device__ __forceinline__ void write_ternary(const std::uint32_t* codes, int quads,
                                              std::uint32_t* out) {
  const int groups = quads / 5;
  for (int i = static_cast<int>(threadIdx.x); i < groups * kPageTokens; i += kPackThreads) {
    const int group = i / kPageTokens;
    const int row = byte_plane_row(i % kPageTokens, group % 4);
    unsigned values = 0;  // at most 242 in a byte: no carry into the next
    for (int k = 0; k < 5; ++k) values = values * 3 + codes[(5 * group + k) * kQuadWords + row];
    unsigned word = 0;
    for (int bit = 0; bit < 32; bit += 8) {
      word |= (256 * ((values >> bit) & 0xffU) + 242) / 243 << bit;
    }
    out[i] = word;
  }
  // The rest is a plane of 2 bits, swizzled by its own T.
  out += groups * kPageTokens;
  for (int i = static_cast<int>(threadIdx.x); i < quads % 5 * 16; i += kPackThreads) {
    const int quad = 5 * groups + i / 16;
    out[i] = plane_word({2, 0}, codes + quad * kQuadWords, quad % 4, i % 16);
  }
}

__device__ __forceinline__ void copy_words(const void* from, void* to, int bytes) {
  for (int i = static_cast<int>(threadIdx.x); i < bytes / 4; i += kPackThreads) {
    static_cast<std::uint32_t*>(to)[i] = static_cast<const std::uint32_t*>(from)[i];
  }
}

__device__ __forceinline__ void clear_words(void* to, int bytes) {
  for (int i = static_cast<int>(threadIdx.x); i < bytes / 4; i += kPackThreads) {
    static_cast<std::uint32_t*>(to)[i] = 0;
  }
}

__device__ __forceinline__ void write_sections(const PackTensor& tensor, const PackedParts& parts,
                                               std::byte* page) {
  for (int block = 0; block < tensor.blocks; ++block) {
    const std::uint32_t* codes = parts.words + block * tensor.quads * kQuadWords;
    auto* out =
        reinterpret_cast<std::uint32_t*>(page + tensor.planes + block * tensor.block_bytes);
    if (tensor.bits == Bits::kTernary) {
      write_ternary(codes, tensor.quads, out);
      continue;
    }
    write_plane({tensor.low_width, 0}, codes, tensor.quads, out);
    if (tensor.high_width != 0) {
      write_plane({tensor.high_width, tensor.low_width}, codes, tensor.quads,
                  out + 8 * tensor.low_width * tensor.quads);
    }
  }
  copy_words(parts.scales, page + tensor.scales, tensor.parameter_bytes);
  if (tensor.affine) copy_words(parts.centers, page + tensor.centers, tensor.parameter_bytes);
}

// 16 bits: K [head_dim][64 tokens], V [block][64 tokens][64 channels], missing channels zero.
__device__ __forceinline__ void write_unquantized(const PackParams& params,
                                                  const PackTensor& tensor, bool is_key,
                                                  const std::uint16_t* rows, std::byte* page) {
  auto* out = reinterpret_cast<std::uint32_t*>(page + tensor.planes);
  const int words = tensor.blocks * tensor.block_bytes / 4;
  const auto number = [&](int token, int channel) {
    return std::uint32_t{rows[token * params.row_token_stride + channel]};
  };
  for (int i = static_cast<int>(threadIdx.x); i < words; i += kPackThreads) {
    const int major = i / 32;
    const int minor = i % 32 * 2;
    if (is_key) {
      out[i] = number(minor, major) | number(minor + 1, major) << 16;
      continue;
    }
    const int token = major % kPageTokens;
    const int channel = major / kPageTokens * 64 + minor;
    out[i] = channel < params.head_dim
                 ? number(token, channel) | number(token, channel + 1) << 16
                 : 0;
  }
}

}  // namespace kvq::cuda
