// Attention over tiles: one strip of 64 tokens is expanded to binary32, then multiplied by a block
// of query rows. The expansion is paid once per strip, so its share falls with the query rows.
//
//   Q [rows, head_dim] x key tile [head_dim, 64 tokens]      -> scores [rows, 64]
//   weights [rows, 64] x value tile [64 tokens, 64 channels] -> output [rows, 64], per block
//
// TileKernels is what an instruction set provides; TilePlan is what they need to know of a format.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "kvq/base/cpu.h"
#include "kvq/base/half.h"
#include "kvq/codec/page_format.h"

namespace kvq {

inline constexpr int kMaxHeadDim = 256;
inline constexpr int kMaxTileParameters = 1024;  // scales of one block, as expanded

// Which scale a code of a block takes.
enum class TileParameters : std::uint8_t {
  kNone,     // 16 bits
  kDepth,    // one per depth:                    [depth]
  kQuarter,  // one per depth and 16 rows:        [depth][4]
  kRow,      // one per row and group of depths:  [depth / period][64]
};

// How one tensor of a page is expanded.
struct TilePlan {
  explicit TilePlan(const TensorFormat& tensor);
  TilePlan(TilePlan&&) = default;
  TilePlan(const TilePlan&) = delete;

  TensorFormat format;
  TileParameters parameters = TileParameters::kNone;
  int period = 1;  // depths that share a row-wise scale
  int count = 0;   // scales of one block, as expanded
  bool affine = false;
  float middle = 0;
  const std::uint16_t* index = nullptr;  // [blocks][count], fp16 index in the scales section

 private:
  std::vector<std::uint16_t> index_;
};

// Where the plane of a width keeps the rows of a depth quad T, T's own offset of 8 * width words
// left out: row's word, and the lowest bit of its field in each byte of the word.
struct PlaneTable {
  explicit PlaneTable(int width);

  std::int32_t word[4][kBlockRows];  // by T & 3
  std::uint32_t bit[kBlockRows];
};

// width: 1, 2, 4 or 8.
const PlaneTable& plane_table(int width);

// Memory that expansions need; one per worker.
struct alignas(64) TileScratch {
  std::uint32_t codes[kMaxHeadDim / 4 * kBlockRows];  // [depth / 4][64 rows], byte i: depth 4T + i
  std::uint16_t halves[2][kMaxTileParameters];        // scales and centers, fp16
  float scale[kMaxTileParameters];
  float offset[kMaxTileParameters];  // center - middle * scale
};

struct TileKernels {
  // The values of block `block` of a page's tensor, rotation kept: tile [depth][64 rows].
  void (*expand)(const TilePlan& plan, const std::byte* page, int block, TileScratch& scratch,
                 float* tile);
  // `count` (1 to 64) rows fp16 [count, head_dim] transposed: tile [head_dim][64], the columns from
  // count up to the next multiple of 16 zero.
  void (*exact_key)(const Half* rows, int head_dim, int count, float* tile);
  // The same rows as tile [ceil(head_dim / 64)][64 tokens][64 channels], tokens from count up to
  // the next multiple of 16 zero. Channels beyond head_dim are not written.
  void (*exact_value)(const Half* rows, int head_dim, int count, float* tile);
  // c = a b, or with `rescale` [rows]: c[r] = rescale[r] c[r] + a[r] b.
  //   a  [rows, depth], row stride a_stride; depth a multiple of 16
  //   b  [depth][64]
  //   c  [rows, columns], row stride c_stride; columns 16, 32, 48 or 64
  void (*multiply)(const float* a, int a_stride, const float* b, int depth, int columns, float* c,
                   int c_stride, int rows, const float* rescale);
  // One step of the running softmax, in powers of two, of `rows` score rows [rows][64]. Row r has
  // `visible`[r] >= 1 columns, the others up to `columns` (a multiple of 16) count as -infinity.
  //   scores   become the weights 2^(score - maximum)
  //   maximum  [rows], running, -infinity at first
  //   sum      [rows], running sum of the weights
  //   rescale  [rows], 2^(maximum before - maximum): what earlier output is to be multiplied by
  // Elements of maximum and rescale up to the next multiple of 16 rows are read and written, too.
  void (*softmax)(float* scores, const int* visible, int columns, int rows, float* maximum,
                  float* sum, float* rescale);
};

const TileKernels& tile_kernels(Isa isa);

}  // namespace kvq
