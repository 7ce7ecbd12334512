#include "kvq/codec/page_layout.h"

#include <array>
#include <cstring>
#include <vector>

namespace kvq {
namespace {

constexpr std::uint32_t kEveryByte = 0x01010101U;

// Rows of a block as row = 16 j + 2 g + r.
constexpr int row_of(int j, int g, int r) { return 16 * j + 2 * g + r; }

// `width` bits of every code, from bit `below` up.
struct Field {
  int below;
  std::uint32_t mask;
  Field(int width, int first) : below(first), mask(kEveryByte * ((1U << width) - 1U)) {}
  std::uint32_t take(std::uint32_t word) const { return (word >> below) & mask; }
};

// The words of one T of a plane: 64, 32, 16 or 8 for 8, 4, 2 or 1 bits.
void write_plane(int width, Field field, const std::uint32_t* rows, int t, std::uint32_t* out) {
  const auto bits = [&](int j, int g, int r) { return field.take(rows[row_of(j, g, r)]); };
  for (int g = 0; g < 8; ++g) {
    switch (width) {
      case 8:
        for (int r = 0; r < 2; ++r) {
          for (int j = 0; j < 4; ++j) out[4 * (8 * r + (g ^ (2 * t))) + j] = bits(j, g, r);
        }
        break;
      case 4:
        for (int j = 0; j < 4; ++j) {
          out[4 * (g ^ (2 * t)) + j] = bits(j, g, 0) | bits(j, g, 1) << 4;
        }
        break;
      case 2:
        for (int j = 0; j < 4; j += 2) {
          out[2 * (g ^ (4 * (t >> 1))) + j / 2] =
              bits(j, g, 0) | bits(j + 1, g, 0) << 2 | bits(j, g, 1) << 4 | bits(j + 1, g, 1) << 6;
        }
        break;
      default: {
        std::uint32_t word = 0;
        for (int j = 0; j < 4; ++j) word |= bits(j, g, 0) << j | bits(j, g, 1) << (4 + j);
        out[g] = word;
      }
    }
  }
}

// Merges the fields of one T into rows[64].
void read_plane(int width, Field field, const std::uint32_t* in, int t, std::uint32_t* rows) {
  for (int row = 0; row < kBlockRows; ++row) {
    const PlaneField place = plane_field(width, row, t);
    rows[row] |= ((in[place.word / 4 - 8 * width * t] >> place.bit) & field.mask) << field.below;
  }
}

// Five codes 0..2 in a byte: ceil(256 v / 243), v = their base-3 number, first code highest.
constexpr std::array<std::uint8_t, 243> make_trit_bytes() {
  std::array<std::uint8_t, 243> table{};
  for (unsigned v = 0; v < 243; ++v) table[v] = static_cast<std::uint8_t>((256 * v + 242) / 243);
  return table;
}
constexpr std::array<std::uint8_t, 243> kTritBytes = make_trit_bytes();

std::uint32_t encode_trits(std::uint32_t values) {
  std::uint32_t word = 0;
  for (int i = 0; i < 32; i += 8) word |= std::uint32_t{kTritBytes[(values >> i) & 0xffU]} << i;
  return word;
}

void write_ternary(const std::uint32_t* words, int quads, std::byte* block) {
  std::array<std::uint32_t, kBlockRows> out;
  std::array<std::uint32_t, kBlockRows> trits;
  int quad = 0;
  for (int group = 0; group < quads / 5; ++group, quad += 5) {
    const std::uint32_t* in = words + quad * kBlockRows;
    for (int row = 0; row < kBlockRows; ++row) {
      std::uint32_t values = 0;  // at most 242 in a byte: no carry into the next
      for (int k = 0; k < 5; ++k) values = values * 3 + in[k * kBlockRows + row];
      trits[row] = encode_trits(values);
    }
    write_plane(8, Field(8, 0), trits.data(), group & 3, out.data());
    std::memcpy(block, out.data(), 256);
    block += 256;
  }
  for (; quad < quads; ++quad) {
    write_plane(2, Field(2, 0), words + quad * kBlockRows, quad & 3, out.data());
    std::memcpy(block, out.data(), 64);
    block += 64;
  }
}

void read_ternary(const std::byte* block, int quads, std::uint32_t* words) {
  std::array<std::uint32_t, kBlockRows> in;
  int quad = 0;
  for (int group = 0; group < quads / 5; ++group, quad += 5) {
    std::array<std::uint32_t, kBlockRows> trits{};
    std::memcpy(in.data(), block, 256);
    read_plane(8, Field(8, 0), in.data(), group & 3, trits.data());
    for (int row = 0; row < kBlockRows; ++row) {
      // Multiplying the byte, as a fraction of 256, by 3 shifts the next code above the point.
      std::uint32_t even = trits[row] & 0x00ff00ffU;
      std::uint32_t odd = (trits[row] >> 8) & 0x00ff00ffU;
      for (int k = 0; k < 5; ++k) {
        even *= 3;
        odd *= 3;
        words[(quad + k) * kBlockRows + row] = ((even >> 8) & 0x00ff00ffU) | (odd & 0xff00ff00U);
        even &= 0x00ff00ffU;
        odd &= 0x00ff00ffU;
      }
    }
    block += 256;
  }
  for (; quad < quads; ++quad) {
    std::memcpy(in.data(), block, 64);
    std::memset(words + quad * kBlockRows, 0, 256);
    read_plane(2, Field(2, 0), in.data(), quad & 3, words + quad * kBlockRows);
    block += 64;
  }
}

// parameter_depth_offset() of every depth group.
std::vector<int> depth_offsets(const TensorFormat& format) {
  std::vector<int> offsets;
  offsets.reserve(static_cast<std::size_t>(format.depth));
  for (int depth = 0; depth < format.depth; depth += format.group_depth) {
    offsets.push_back(parameter_depth_offset(format, depth));
  }
  return offsets;
}

}  // namespace

void write_block(Bits bits, const std::uint32_t* words, int depth, std::byte* block) {
  const int quads = depth / 4;
  if (bits == Bits::kTernary) return write_ternary(words, quads, block);
  std::array<std::uint32_t, kBlockRows> out;
  const auto [low, high] = planes(bits);
  int below = 0;
  for (int width : {low, high}) {
    for (int quad = 0; width != 0 && quad < quads; ++quad) {
      write_plane(width, Field(width, below), words + quad * kBlockRows, quad & 3, out.data());
      std::memcpy(block, out.data(), static_cast<std::size_t>(32 * width));
      block += 32 * width;
    }
    below += width;
  }
}

void read_block(Bits bits, const std::byte* block, int depth, std::uint32_t* words) {
  const int quads = depth / 4;
  if (bits == Bits::kTernary) return read_ternary(block, quads, words);
  std::memset(words, 0, static_cast<std::size_t>(quads) * kBlockRows * sizeof *words);
  std::array<std::uint32_t, kBlockRows> in;
  const auto [low, high] = planes(bits);
  int below = 0;
  for (int width : {low, high}) {
    for (int quad = 0; width != 0 && quad < quads; ++quad) {
      std::memcpy(in.data(), block, static_cast<std::size_t>(32 * width));
      read_plane(width, Field(width, below), in.data(), quad & 3, words + quad * kBlockRows);
      block += 32 * width;
    }
    below += width;
  }
}

int row_group_count(const TensorFormat& format) {
  const int rows = format.is_key ? kPageTokens : format.head_dim;
  return (rows + format.group_rows - 1) / format.group_rows;
}

int depth_group_count(const TensorFormat& format) {
  return (format.depth + format.group_depth - 1) / format.group_depth;
}

void write_parameters(const TensorFormat& format, const ParameterGrid& grid, std::byte* section) {
  const std::vector<int> depths = depth_offsets(format);
  const int rows = row_group_count(format);
  std::array<Half, kMaxParameters> numbers{};
  for (int r = 0; r < rows; ++r) {
    Half* to = numbers.data() + parameter_row_offset(format, r * format.group_rows);
    const Half* from = grid.values + r * grid.row_stride;
    for (std::size_t d = 0; d < depths.size(); ++d, from += grid.depth_stride)
      to[depths[d]] = *from;
  }
  std::memcpy(section, numbers.data(), static_cast<std::size_t>(format.parameter_count) * 2);
}

void read_parameters(const TensorFormat& format, const std::byte* section, float* grid) {
  std::array<Half, kMaxParameters> numbers;
  std::memcpy(numbers.data(), section, static_cast<std::size_t>(format.parameter_count) * 2);
  const std::vector<int> depths = depth_offsets(format);
  const int rows = row_group_count(format);
  for (int r = 0; r < rows; ++r) {
    const Half* from = numbers.data() + parameter_row_offset(format, r * format.group_rows);
    for (const int depth : depths) *grid++ = to_float(from[depth]);
  }
}

void write_tensor(const TensorFormat& format, const std::uint32_t* words,
                  const ParameterGrid& scales, const ParameterGrid& centers, std::byte* page) {
  std::memset(page + format.planes_offset, 0, format.bytes);
  for (int block = 0; block < format.blocks; ++block) {
    write_block(format.spec.bits, words + block * (format.depth / 4) * kBlockRows, format.depth,
                page + format.planes_offset + block * format.block_bytes);
  }
  write_parameters(format, scales, page + format.scales_offset);
  if (format.has_centers()) write_parameters(format, centers, page + format.centers_offset);
}

}  // namespace kvq
