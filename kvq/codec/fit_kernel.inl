// The kernels of fit.h, written once and compiled for every instruction set.
//
// Idea: lanes are lines. Every lane of a vector works on a line of its own, so no sum crosses a
// lane (but for the groups of 2 or 4 adjacent lines) and the order of additions is the same for any
// number of lanes. The including file sets KVQ_LANES and its compiler flags.
//
//   values [member][line]      one pass over 16 KiB or less, kept in L1 for all candidates
//     member 0: | l0 l1 l2 .. |
//     member 1: | l0 l1 l2 .. |   four members' codes are the four bytes of one word a lane
#include <cstdint>

#include "kvq/codec/fit.h"

namespace kvq {
namespace {

constexpr int kLanes = KVQ_LANES;
constexpr int kMaxMembers = 256;

typedef float Floats __attribute__((vector_size(4 * KVQ_LANES)));
typedef std::int32_t Ints __attribute__((vector_size(4 * KVQ_LANES)));
typedef std::uint32_t Words __attribute__((vector_size(4 * KVQ_LANES)));
// Unaligned views for loads and stores.
typedef Floats FloatsAt __attribute__((aligned(4), may_alias));
typedef Words WordsAt __attribute__((aligned(4), may_alias));
typedef std::uint8_t Bytes16 __attribute__((vector_size(16)));
typedef Bytes16 Bytes16At __attribute__((aligned(4), may_alias));

inline Floats load(const float* at) { return *reinterpret_cast<const FloatsAt*>(at); }
inline void store(float* at, Floats value) { *reinterpret_cast<FloatsAt*>(at) = value; }
inline Floats splat(float value) { return value - Floats{}; }
inline Floats min(Floats a, Floats b) { return a < b ? a : b; }
inline Floats max(Floats a, Floats b) { return a > b ? a : b; }
inline Floats absolute(Floats a) {
  return reinterpret_cast<Floats>(reinterpret_cast<Ints>(a) & 0x7fffffff);
}

// Adding 1.5 * 2^23 leaves |x| < 2^22 rounded to an integer (ties to even) in the low mantissa
// bits.
constexpr float kRounder = 12582912.0F;

// Lane l gets lane l ^ distance; distance is a power of two.
template <int Distance>
inline Floats exchange(Floats value) {
  Ints index;
  for (int lane = 0; lane < kLanes; ++lane) index[lane] = lane ^ Distance;
  return __builtin_shuffle(value, index);
}

// fp16 rounding of numbers within fp16's range, kept in binary32: adding 2^13 times the power of
// two below |x| (at least 2^-14, where subnormals begin) leaves 11 significant bits.
inline Floats round_to_half(Floats value) {
  const Floats limited = min(max(value, splat(-65504.0F)), splat(65504.0F));
  const Floats magnitude = absolute(limited);
  const Floats power = reinterpret_cast<Floats>(reinterpret_cast<Ints>(magnitude) & 0x7f800000);
  const Floats rounder = max(power, splat(0x1p-14F)) * 8192.0F;
  const Floats rounded = (magnitude + rounder) - rounder;
  const Ints sign = reinterpret_cast<Ints>(limited) & static_cast<std::int32_t>(0x80000000U);
  return reinterpret_cast<Floats>(reinterpret_cast<Ints>(rounded) | sign);
}

// Four running sums a line.
struct Sum {
  Floats partial[4] = {};
  Floats total(int group_lines) const {
    Floats sum = (partial[0] + partial[2]) + (partial[1] + partial[3]);
    if (group_lines >= 2) sum = sum + exchange<1>(sum);
    if (group_lines == 4) sum = sum + exchange<2>(sum);
    return sum;
  }
};

template <typename Pick>
inline Floats across_lines(Floats value, int group_lines, Pick pick) {
  if (group_lines >= 2) value = pick(value, exchange<1>(value));
  if (group_lines == 4) value = pick(value, exchange<2>(value));
  return value;
}

// One vector of lines, one group of members.
struct Group {
  const Floats* values;  // [members]
  int members;
  int group_lines;
  float mid;   // (levels - 1) / 2
  float last;  // levels - 1
};

struct Fitted {
  Floats scale;  // fp16 values
  Floats center;
};

// 0 where the scale is 0.
inline Floats inverse(Floats scale) {
  const Floats one_over = 1.0F / scale;
  return scale > 0.0F ? one_over : Floats{};
}

// The code as a float.
inline Floats quantize(const Group& group, Floats offset_value, Floats inverse_scale) {
  const Floats position = offset_value * inverse_scale + group.mid;
  const Floats limited = min(max(position, Floats{}), splat(group.last));
  return (limited + kRounder) - kRounder;
}

struct Range {
  Floats low;
  Floats high;
};

inline Range find_range(const Group& group) {
  Range range{group.values[0], group.values[0]};
  for (int m = 1; m < group.members; ++m) {
    range.low = min(range.low, group.values[m]);
    range.high = max(range.high, group.values[m]);
  }
  range.low =
      across_lines(range.low, group.group_lines, [](Floats a, Floats b) { return min(a, b); });
  range.high =
      across_lines(range.high, group.group_lines, [](Floats a, Floats b) { return max(a, b); });
  return range;
}

// Ratios of the widest useful scale that are tried.
constexpr float kShrink[] = {1.0F, 0.9F, 0.8F, 0.7F, 0.6F, 0.5F, 0.4F, 0.3F};

inline Fitted fit_symmetric(const Group& group, bool mean_square) {
  const Range range = find_range(group);
  const Floats widest = max(-range.low, range.high) / group.mid;
  if (!mean_square) return {round_to_half(widest), Floats{}};
  Floats best_scale = widest;
  Floats best_gain = Floats{};
  for (float shrink : kShrink) {
    const Floats inverse_scale = inverse(widest * shrink);
    Sum product;
    Sum square;
    for (int m = 0; m < group.members; ++m) {
      const Floats level = quantize(group, group.values[m], inverse_scale) - group.mid;
      product.partial[m & 3] += group.values[m] * level;
      square.partial[m & 3] += level * level;
    }
    const Floats p = product.total(group.group_lines);
    const Floats s = square.total(group.group_lines);
    const Floats scale = s > 0.0F ? p / s : Floats{};
    const Floats gain = p * scale;
    const Ints better = gain > best_gain;
    best_gain = better ? gain : best_gain;
    best_scale = better ? scale : best_scale;
  }
  return {round_to_half(best_scale), Floats{}};
}

inline Fitted fit_affine(const Group& group, bool mean_square) {
  const Range range = find_range(group);
  const Floats widest = (range.high - range.low) / group.last;
  const Floats middle = (range.high + range.low) * 0.5F;
  if (!mean_square) return {round_to_half(widest), round_to_half(middle)};
  const float count = static_cast<float>(group.members * group.group_lines);
  Sum value_sum;
  for (int m = 0; m < group.members; ++m) value_sum.partial[m & 3] += group.values[m] - middle;
  const Floats total = value_sum.total(group.group_lines);
  Floats best_scale = widest;
  Floats best_center = middle;
  Floats best_gain = Floats{};
  for (float shrink : kShrink) {
    const Floats inverse_scale = inverse(widest * shrink);
    Sum product;
    Sum square;
    Sum level_sum;
    for (int m = 0; m < group.members; ++m) {
      const Floats value = group.values[m] - middle;
      const Floats level = quantize(group, value, inverse_scale) - group.mid;
      product.partial[m & 3] += value * level;
      square.partial[m & 3] += level * level;
      level_sum.partial[m & 3] += level;
    }
    const Floats levels = level_sum.total(group.group_lines);
    const Floats mean_level = levels / count;
    const Floats covariance = product.total(group.group_lines) - total * mean_level;
    const Floats variance = square.total(group.group_lines) - levels * mean_level;
    const Floats scale = variance > 0.0F ? covariance / variance : Floats{};
    const Floats gain = covariance * scale;
    const Ints better = gain > best_gain;
    best_gain = better ? gain : best_gain;
    best_scale = better ? scale : best_scale;
    best_center = better ? middle + (total / count - scale * mean_level) : best_center;
  }
  return {round_to_half(best_scale), round_to_half(best_center)};
}

// Words of four members become words of four lines: within each 4 lanes, a 4 x 4 byte transpose.
inline void transpose_bytes(Words words, std::uint32_t* const* rows) {
  for (int part = 0; part < kLanes / 4; ++part) {
    std::uint32_t in[4];
    for (int k = 0; k < 4; ++k) in[k] = words[4 * part + k];
    for (int r = 0; r < 4; ++r) {
      std::uint32_t word = 0;
      for (int k = 0; k < 4; ++k) word |= ((in[k] >> (8 * r)) & 0xffU) << (8 * k);
      rows[part][r] = word;
    }
  }
}

// Quantizes one group of one vector of lines and writes its words.
void write_codes(const FitTask& task, const Group& group, Fitted fitted, int member, int line) {
  const Floats inverse_scale = inverse(fitted.scale);
  const int depth = task.members_are_depths ? task.members : task.lines;
  const int quads = (task.members_are_depths ? depth : task.lines) / 4;
  for (int m = 0; m < group.members; m += 4) {
    Words word{};
    for (int k = 0; k < 4; ++k) {
      const Floats code = quantize(group, group.values[m + k] - fitted.center, inverse_scale);
      word |= (reinterpret_cast<Words>(code + kRounder) & 0xffU) << (8 * k);
    }
    if (task.members_are_depths) {
      std::uint32_t* at = task.words + ((line / 64) * quads + (member + m) / 4) * 64 + line % 64;
      *reinterpret_cast<WordsAt*>(at) = word;
    } else {
      const int row = member + m;
      std::uint32_t* rows[kLanes / 4];
      for (int part = 0; part < kLanes / 4; ++part) {
        rows[part] = task.words + ((row / 64) * quads + line / 4 + part) * 64 + row % 64;
      }
      transpose_bytes(word, rows);
    }
  }
}

void fit(const FitTask& task) {
  alignas(64) Floats values[kMaxMembers];
  for (int line = 0; line < task.lines; line += kLanes) {
    int index = 0;
    for (int member = 0; member < task.members; member += task.group_members, ++index) {
      const int left = task.members - member;
      Group group{values, left < task.group_members ? left : task.group_members, task.group_lines,
                  0.5F * static_cast<float>(task.levels - 1), static_cast<float>(task.levels - 1)};
      const float* from = task.values + static_cast<long>(member) * task.lines + line;
      for (int m = 0; m < group.members; ++m, from += task.lines) values[m] = load(from);
      const Fitted fitted = task.affine ? fit_affine(group, task.mean_square)
                                        : fit_symmetric(group, task.mean_square);
      write_codes(task, group, fitted, member, line);
      store(task.scales + static_cast<long>(index) * task.lines + line, fitted.scale);
      if (task.affine) {
        store(task.centers + static_cast<long>(index) * task.lines + line, fitted.center);
      }
    }
  }
}

// Butterflies of one vector against itself.
template <int Stride>
inline Floats butterfly(Floats value) {
  Ints sign;
  for (int lane = 0; lane < kLanes; ++lane) {
    sign[lane] = (lane & Stride) != 0 ? static_cast<std::int32_t>(0x80000000U) : 0;
  }
  // low lane: own + other; high lane: other - own
  return exchange<Stride>(value) + reinterpret_cast<Floats>(reinterpret_cast<Ints>(value) ^ sign);
}

void hadamard(float* rows, int count, int head_dim, int block) {
  float scale = 1.0F;
  for (int b = block; b >= 4; b /= 4) scale *= 0.5F;
  int log2 = 0;
  while ((1 << log2) < block) ++log2;
  if (log2 % 2 == 1) scale *= 0.70710678118654752440F;
  for (long start = 0; start < static_cast<long>(count) * head_dim; start += block) {
    float* x = rows + start;
    for (int i = 0; i < block; i += kLanes) {
      Floats value = butterfly<2>(butterfly<1>(load(x + i)));
      if constexpr (kLanes >= 8) value = butterfly<4>(value);
      if constexpr (kLanes >= 16) value = butterfly<8>(value);
      store(x + i, value);
    }
    for (int stride = kLanes; stride < block; stride *= 2) {
      for (int base = 0; base < block; base += 2 * stride) {
        for (int i = base; i < base + stride; i += kLanes) {
          const Floats low = load(x + i);
          const Floats high = load(x + i + stride);
          store(x + i, low + high);
          store(x + i + stride, low - high);
        }
      }
    }
    for (int i = 0; i < block; i += kLanes) store(x + i, load(x + i) * scale);
  }
}

void transpose(const float* rows, int head_dim, float* columns) {
  for (int token = 0; token < 64; token += 4) {
    for (int channel = 0; channel < head_dim; channel += 4) {
      for (int c = 0; c < 4; ++c) {
        for (int t = 0; t < 4; ++t) {
          columns[(channel + c) * 64 + token + t] = rows[(token + t) * head_dim + channel + c];
        }
      }
    }
  }
}

}  // namespace
}  // namespace kvq
