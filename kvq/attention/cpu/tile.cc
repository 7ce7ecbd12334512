#include "kvq/attention/cpu/tile.h"

#include <algorithm>

#include "kvq/attention/cpu/tile_sets.h"

namespace kvq {
namespace {

// fp16 index of the group that holds (row, depth) of a block.
int group_index(const TensorFormat& format, int block, int row, int depth) {
  if (format.is_key) return parameter_index(format, row, depth);
  // The rows behind head_dim are padding: any finite scale will do.
  return parameter_index(format, depth, std::min(block * kBlockRows + row, format.head_dim - 1));
}

}  // namespace

TilePlan::TilePlan(const TensorFormat& tensor) : format(tensor) {
  if (format.spec.bits == Bits::k16) return;
  middle = kvq::middle(format.spec.bits);
  affine = format.has_centers();
  int rows = kBlockRows;  // parameters across the rows of one depth
  if (!format.depth_wise) {
    parameters = TileParameters::kRow;
    period = format.group_depth;
  } else if (format.group_rows % kBlockRows == 0) {
    parameters = TileParameters::kDepth;
    rows = 1;
  } else {
    parameters = TileParameters::kQuarter;
    rows = 4;
  }
  const int steps = (format.depth + period - 1) / period;
  count = steps * rows;
  index_.reserve(static_cast<std::size_t>(format.blocks) * count);
  for (int block = 0; block < format.blocks; ++block) {
    for (int step = 0; step < steps; ++step) {
      for (int row = 0; row < rows; ++row) {
        const int at = group_index(format, block, row * (kBlockRows / rows), step * period);
        index_.push_back(static_cast<std::uint16_t>(at));
      }
    }
  }
  index = index_.data();
}

PlaneTable::PlaneTable(int width) {
  for (int row = 0; row < kBlockRows; ++row) {
    for (int quad = 0; quad < 4; ++quad) {
      const PlaneField field = plane_field(width, row, quad);
      word[quad][row] = field.word / 4 - 8 * width * quad;
      bit[row] = static_cast<std::uint32_t>(field.bit);
    }
  }
}

const PlaneTable& plane_table(int width) {
  static const PlaneTable kTables[] = {PlaneTable(1), PlaneTable(2), PlaneTable(4), PlaneTable(8)};
  return kTables[width == 8 ? 3 : width / 2];
}

const TileKernels& tile_kernels(Isa isa) {
  switch (isa) {
#if defined(__x86_64__)
    case Isa::kAvx512:
      return kTileKernelsAvx512;
    case Isa::kAvx2:
      return kTileKernelsAvx2;
#endif
    default:
      return kTileKernelsPortable;
  }
}

}  // namespace kvq
