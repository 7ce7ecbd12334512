// The kernels behind FitKernels. The including file sets KVQ_LANES and the compiler flags.
//
// Idea: lanes are lines (fit.h). A vector of lines is copied to one contiguous piece of at most
// 16 KiB, which stays in L1 while the candidates are tried; the codes of four members make the four
// bytes of a 32-bit word in every lane.
//
//   members are depths (K token axis, V channel axis): the words are final, lanes are rows.
//   members are rows   (K channel axis, V token axis): lanes are depths; a 4 x 4 transpose of bytes
//                      inside each 4 lanes makes them words of four depths for four rows:
//
//      lane     4T      4T+1    4T+2    4T+3          row    m       m+1     m+2     m+3
//      bytes  a a a a  b b b b c c c c d d d d   ->        a b c d a b c d a b c d a b c d
//      (row)  m . . m+3
#include "kvq/codec/fit.h"
#include "kvq/codec/fit_half_quadratic.inl"

namespace kvq {
namespace {

constexpr int kRows = 64;  // rows of a block, tokens of a page
constexpr int kMaxMembers = 256;

template <int... kByte>
inline Words transpose_bytes(Words words, std::integer_sequence<int, kByte...>) {
  const Bytes bytes = reinterpret_cast<Bytes>(words);
  return reinterpret_cast<Words>(
      __builtin_shufflevector(bytes, bytes, (kByte / 16 * 16 + kByte % 4 * 4 + kByte % 16 / 4)...));
}

inline Words transpose_bytes(Words words) {
  return transpose_bytes(words, std::make_integer_sequence<int, 4 * kLanes>{});
}

// Quantizes one group of one vector of lines, the first being `line`, from `member` on.
void write_codes(const FitTask& task, const Group& group, Fitted fitted, int member, int line) {
  const Floats inverse_scale = inverse(fitted.scale);
  const int quads = (task.members_are_depths ? task.members : task.lines) / 4;
  for (int m = 0; m < group.members; m += 4) {
    Words word{};
    for (int k = 0; k < 4; ++k) {
      const Floats position = (group.values[m + k] - fitted.center) * inverse_scale + group.mid();
      const Floats code = round_code(position, group.last());
      word |= (reinterpret_cast<Words>(code) & 0xffU) << (8 * k);
    }
    if (task.members_are_depths) {
      const int quad = line / kRows * quads + (member + m) / 4;
      *reinterpret_cast<WordsAt*>(task.words + quad * kRows + line % kRows) = word;
      continue;
    }
    const int row = member + m;
    std::uint32_t* to = task.words + (row / kRows * quads + line / 4) * kRows + row % kRows;
    const Words transposed = transpose_bytes(word);
    for (int part = 0; part < kLanes / 4; ++part) {
      __builtin_memcpy(to + part * kRows, reinterpret_cast<const char*>(&transposed) + 16 * part,
                       16);
    }
  }
}

Fitted fit_group(const FitTask& task, const Group& group, Floats* scratch) {
  if (!task.affine) return fit_symmetric(group, task.mean_square);
  if (task.half_quadratic) return fit_half_quadratic(group, scratch);
  return fit_affine(group, task.mean_square, scratch);
}

void fit(const FitTask& task) {
  alignas(64) Floats values[kMaxMembers];
  alignas(64) Floats scratch[kMaxMembers];
  for (int line = 0; line < task.lines; line += kLanes) {
    std::int64_t at = line;  // in scales and centers
    for (int member = 0; member < task.members; member += task.group_members, at += task.lines) {
      const int left = task.members - member;
      const Group group{values, left < task.group_members ? left : task.group_members,
                        task.group_lines, task.levels};
      const float* from = task.values + static_cast<std::int64_t>(member) * task.lines + line;
      for (int m = 0; m < group.members; ++m, from += task.lines) values[m] = load(from);
      const Fitted fitted = fit_group(task, group, scratch);
      write_codes(task, group, fitted, member, line);
      store(task.scales + at, fitted.scale);
      if (task.affine) store(task.centers + at, fitted.center);
    }
  }
}

// The butterflies between lanes of one vector: the lower lane of a pair gets the sum, the upper one
// the difference.
template <int Stride>
inline Floats butterfly(Floats value) {
  Ints sign;
  for (int lane = 0; lane < kLanes; ++lane) sign[lane] = (lane & Stride) != 0 ? kSignBit : 0;
  return exchange<Stride>(value) + number(bits(value) ^ sign);
}

template <int Block>
void hadamard_blocks(float* numbers, std::int64_t count) {
  constexpr int kVectors = Block / kLanes;
  // 1 / sqrt(Block)
  constexpr int kLog2 = __builtin_ctz(Block);
  constexpr float kScale =
      (kLog2 % 2 == 0 ? 1.0F : 0.70710678118654752440F) / static_cast<float>(1 << (kLog2 / 2));
  for (float* block = numbers; block != numbers + count; block += Block) {
    Floats x[kVectors];
    for (int v = 0; v < kVectors; ++v) {
      x[v] = butterfly<2>(butterfly<1>(load(block + v * kLanes)));
      if constexpr (kLanes >= 8) x[v] = butterfly<4>(x[v]);
      if constexpr (kLanes >= 16) x[v] = butterfly<8>(x[v]);
    }
    for (int stride = 1; stride < kVectors; stride *= 2) {
      for (int v = 0; v < kVectors; ++v) {
        if ((v & stride) != 0) continue;
        const Floats low = x[v];
        const Floats high = x[v + stride];
        x[v] = low + high;
        x[v + stride] = low - high;
      }
    }
    for (int v = 0; v < kVectors; ++v) store(block + v * kLanes, x[v] * kScale);
  }
}

void hadamard(float* rows, int count, int head_dim, int block) {
  const std::int64_t numbers = static_cast<std::int64_t>(count) * head_dim;
  switch (block) {
    case 16:
      return hadamard_blocks<16>(rows, numbers);
    case 32:
      return hadamard_blocks<32>(rows, numbers);
    case 64:
      return hadamard_blocks<64>(rows, numbers);
    case 128:
      return hadamard_blocks<128>(rows, numbers);
    default:
      return hadamard_blocks<256>(rows, numbers);
  }
}

typedef float Quad __attribute__((vector_size(16)));
typedef Quad QuadAt __attribute__((aligned(4), may_alias));

// 4 x 4 numbers at a time: pairs of tokens are interleaved, then pairs of pairs.
void transpose(const float* rows, int head_dim, float* columns) {
  for (int token = 0; token < kRows; token += 4) {
    for (int channel = 0; channel < head_dim; channel += 4) {
      const auto row = [&](int t) {
        return *reinterpret_cast<const QuadAt*>(rows + (token + t) * head_dim + channel);
      };
      const auto put = [&](int c, Quad column) {
        *reinterpret_cast<QuadAt*>(columns + (channel + c) * kRows + token) = column;
      };
      const Quad low01 = __builtin_shufflevector(row(0), row(1), 0, 4, 1, 5);
      const Quad low23 = __builtin_shufflevector(row(2), row(3), 0, 4, 1, 5);
      const Quad high01 = __builtin_shufflevector(row(0), row(1), 2, 6, 3, 7);
      const Quad high23 = __builtin_shufflevector(row(2), row(3), 2, 6, 3, 7);
      put(0, __builtin_shufflevector(low01, low23, 0, 1, 4, 5));
      put(1, __builtin_shufflevector(low01, low23, 2, 3, 6, 7));
      put(2, __builtin_shufflevector(high01, high23, 0, 1, 4, 5));
      put(3, __builtin_shufflevector(high01, high23, 2, 3, 6, 7));
    }
  }
}

}  // namespace
}  // namespace kvq
