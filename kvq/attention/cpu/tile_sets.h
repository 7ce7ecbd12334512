// The tile kernels of every instruction set, one file each.
#pragma once

#include "kvq/attention/cpu/tile.h"

namespace kvq {

extern const TileKernels kTileKernelsPortable;
#if defined(__x86_64__)
extern const TileKernels kTileKernelsAvx2;
extern const TileKernels kTileKernelsAvx512;
#endif

}  // namespace kvq
