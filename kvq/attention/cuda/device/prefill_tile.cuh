// Which queries a block has, and what they read.
//
// The query rows of a sequence's chunk are its (token, head of the kv head) pairs, tokens first. A
// block takes a tile of consecutive rows of one kv head and walks the units, 64 positions each,
// that any of them sees:
//
//   pages 0 .. pages - 1      positions S + 64 u ..
//   exact rows, 64 a unit     the sinks, then the tail from the first row's boundary on
//
// Positions that some row does not see are masked.
#pragma once

#include "kvq/attention/cuda/device/fragments.cuh"
#include "kvq/attention/cuda/prefill_params.h"

namespace kvq::cuda {

// Of the keys, and as many of the values.
inline constexpr int kUnpackWarps = 4;

struct PrefillTile {
  int sequence = -1;  // -1: there is no such tile
  int kv_head;
  int query_start;  // row of the chunk's first token in query and output
  int first_row;    // of the chunk
  int chunk_rows;
  int chunk_position;  // position of the chunk's first token

  int tail_first;
  int sinks;        // sink rows that the last row sees
  int exact_first;  // position of the first tail row of the tile
  int exact_rows;   // sinks and tail rows together
  int pages;
  int units;  // pages, then exact ones

  // Position of a row of the tile, the last row's beyond the end.
  __device__ int position(const PrefillParams& params, int row) const {
    return chunk_position + min(first_row + row, chunk_rows - 1) / params.heads;
  }
  // The query at `position` reads [S, boundary) from pages.
  __device__ int boundary(const PrefillParams& params, int position) const {
    const int behind = position - params.sink_tokens - params.window;
    const int packed = params.exact_prefill || behind < 0 ? 0 : behind / kPageTokens * kPageTokens;
    return max(params.sink_tokens + packed, tail_first);
  }
};

// Tile number `rank` from the end, tiles of `rows` rows: the last ones of a chunk see the most.
__device__ __forceinline__ PrefillTile find_tile(const PrefillParams& params, int rank, int rows,
                                                 int kv_head, Lane lane) {
  PrefillTile tile;
  tile.kv_head = kv_head;
  int before = 0;
  for (int last = params.sequences - 1; last >= 0; last -= 32) {
    const int sequence = last - lane.index;
    int tiles = 0;
    if (sequence >= 0) {
      const int tokens = params.query_starts[sequence + 1] - params.query_starts[sequence];
      tiles = (tokens * params.heads + rows - 1) / rows;
    }
    int through = tiles;
#pragma unroll
    for (int distance = 1; distance < 32; distance *= 2) {
      const int other = __shfl_up_sync(0xffffffffU, through, distance);
      if (lane.index >= distance) through += other;
    }
    const unsigned beyond = __ballot_sync(0xffffffffU, before + through > rank);
    if (beyond != 0) {
      const int found = __ffs(static_cast<int>(beyond)) - 1;
      tile.sequence = last - found;
      const int index = before + __shfl_sync(0xffffffffU, through, found) - 1 - rank;
      tile.first_row = index * rows;
      break;
    }
    before += __shfl_sync(0xffffffffU, through, 31);
  }
  if (tile.sequence < 0) return tile;
  tile.query_start = params.query_starts[tile.sequence];
  const int tokens = params.query_starts[tile.sequence + 1] - tile.query_start;
  const ChunkLength length = params.lengths[tile.sequence];
  tile.chunk_rows = tokens * params.heads;
  tile.chunk_position = length.length - tokens;
  tile.tail_first = length.tail_first;
  const int last_position = tile.position(params, rows - 1);
  const int packed = tile.boundary(params, last_position) - params.sink_tokens;
  tile.sinks = min(params.sink_tokens, last_position + 1);
  tile.exact_first = tile.boundary(params, tile.position(params, 0));
  tile.exact_rows = tile.sinks + max(last_position + 1 - tile.exact_first, 0);
  tile.pages = last_position < params.sink_tokens ? 0 : (packed + kPageTokens - 1) / kPageTokens;
  tile.units = tile.pages + (tile.exact_rows + kPageTokens - 1) / kPageTokens;
  return tile;
}

}  // namespace kvq::cuda
