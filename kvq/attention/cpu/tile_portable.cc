// Tile kernels in plain C++: vectors of four lanes, which every 64-bit processor has.
#include <bit>

#include "kvq/attention/cpu/tile_kernels.h"
#include "kvq/attention/cpu/tile_sets.h"

namespace kvq {
namespace {

struct Vector {
  using Floats [[gnu::vector_size(16)]] = float;
  using Words [[gnu::vector_size(16)]] = std::uint32_t;
  static constexpr int kWidth = 4;
  static constexpr int kRows = 4;
  static constexpr int kVectors = 2;

  static Floats set(float x) { return Floats{x, x, x, x}; }
  static Floats load(const float* p) { return Floats{p[0], p[1], p[2], p[3]}; }
  static void store(float* p, Floats x) {
    for (int i = 0; i < kWidth; ++i) p[i] = x[i];
  }
  static Floats load_half(const std::uint16_t* p) {
    return Floats{to_float(Half{p[0]}), to_float(Half{p[1]}), to_float(Half{p[2]}),
                  to_float(Half{p[3]})};
  }
  static Floats add(Floats a, Floats b) { return a + b; }
  static Floats subtract(Floats a, Floats b) { return a - b; }
  static Floats multiply(Floats a, Floats b) { return a * b; }
  static Floats multiply_add(Floats a, Floats b, Floats c) { return a * b + c; }
  static Floats max(Floats a, Floats b) { return a > b ? a : b; }
  static float reduce_max(Floats x) {
    const float a = x[0] > x[1] ? x[0] : x[1];
    const float b = x[2] > x[3] ? x[2] : x[3];
    return a > b ? a : b;
  }
  static float reduce_add(Floats x) { return (x[0] + x[1]) + (x[2] + x[3]); }
  static Floats power_of_two(Floats x) {
    return std::bit_cast<Floats>((std::bit_cast<Words>(x) << 23) + (127U << 23));
  }
  static void transpose(Floats* x) {
    for (int i = 0; i < kWidth; ++i) {
      for (int j = 0; j < i; ++j) {
        const float below = x[i][j];
        x[i][j] = x[j][i];
        x[j][i] = below;
      }
    }
  }

  static Words set_words(std::uint32_t x) { return Words{x, x, x, x}; }
  static Words load_words(const std::uint32_t* p) { return Words{p[0], p[1], p[2], p[3]}; }
  static void store_words(std::uint32_t* p, Words x) {
    for (int i = 0; i < kWidth; ++i) p[i] = x[i];
  }
  template <int kPlaneWidth>
  static Words gather(const std::uint32_t* words, const std::int32_t* index) {
    return Words{words[index[0]], words[index[1]], words[index[2]], words[index[3]]};
  }
  static Words bit_and(Words a, Words b) { return a & b; }
  static Words bit_or(Words a, Words b) { return a | b; }
  static Words add_words(Words a, Words b) { return a + b; }
  static Words shift_right_each(Words x, Words by) { return x >> by; }
  template <int kBits>
  static Words shift_right(Words x) {
    return x >> kBits;
  }
  template <int kBits>
  static Words shift_left(Words x) {
    return x << kBits;
  }
  template <int kByte>
  static Floats byte_value(Words x) {
    return __builtin_convertvector((x >> (8 * kByte)) & 0xffU, Floats);
  }
};

}  // namespace

const TileKernels kTileKernelsPortable = make_tile_kernels<Vector>();

}  // namespace kvq
