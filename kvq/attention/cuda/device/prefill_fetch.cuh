// Brings the keys, or the values, of units from memory to raw buffers in shared memory, by the
// threads of one warpgroup, and exact rows from there to tiles.
//
// A raw buffer holds the K or V part of a page as it is, or 64 exact rows as blocks of [64
// tokens][64 channels] in the order of prefill_product.cuh. For keys that is the tile; values are
// transposed on their way.
#pragma once

#include "kvq/attention/cuda/device/prefill_barrier.cuh"
#include "kvq/attention/cuda/device/prefill_product.cuh"
#include "kvq/attention/cuda/device/prefill_tile.cuh"

namespace kvq::cuda {

inline constexpr int kFetchThreads = 32 * kUnpackWarps;

__device__ __forceinline__ void copy_16_async(std::uint32_t target, const void* source) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(target), "l"(source) : "memory");
}
__device__ __forceinline__ void wait_copies() {
  asm volatile("cp.async.commit_group;\ncp.async.wait_group 0;" ::: "memory");
}
__device__ __forceinline__ void store_shared_4(std::uint32_t address, std::uint32_t x) {
  asm volatile("st.shared.u32 [%0], %1;" ::"r"(address), "r"(x) : "memory");
}

#if __CUDA_ARCH__ >= 900

inline constexpr bool kPageCopyByAll = false;

// Part of a page: one bulk copy that completes on the raw buffer's barrier.
__device__ __forceinline__ void start_page(const std::byte* part, int bytes, int thread,
                                           std::uint32_t raw, Barrier barrier) {
  if (thread != 0) return;
  // The buffer was read, or written, by ordinary instructions before.
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
  barrier.expect(bytes);
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
          "r"(raw),
      "l"(part), "r"(bytes), "r"(barrier.address)
      : "memory");
}
__device__ __forceinline__ void wait_page(Barrier barrier, std::uint32_t parity) {
  barrier.wait(parity);
}

#else

inline constexpr bool kPageCopyByAll = true;

__device__ __forceinline__ void start_page(const std::byte* part, int bytes, int thread,
                                           std::uint32_t raw, Barrier) {
  for (int offset = 16 * thread; offset < bytes; offset += 16 * kFetchThreads) {
    copy_16_async(raw + offset, part + offset);
  }
}
// The threads have to meet behind it.
__device__ __forceinline__ void wait_page(Barrier, std::uint32_t) { wait_copies(); }

#endif

// The exact keys, or values, of a tile.
struct ExactSource {
  const std::uint16_t* sink;
  const std::uint16_t* tail;
  const std::int32_t* blocks;  // of the tail, from the tile's first one on; null: it is contiguous
  std::int64_t block_stride;
  int sinks;
  int last;

  __device__ ExactSource(const PrefillParams& params, const PrefillTile& tile, bool keys)
      : blocks(nullptr),
        block_stride(params.tail.sequence_stride),
        sinks(tile.sinks),
        last(tile.exact_rows - 1) {
    const auto head = [&](const RowBlock& rows, int place) {
      return (keys ? rows.key : rows.value) + place * rows.sequence_stride +
             tile.kv_head * rows.head_stride;
    };
    const int skipped = tile.exact_first - tile.tail_first;  // whole pages
    if (params.row_blocks == nullptr) {
      sink = head(params.sinks, tile.sequence);
      tail =
          head(params.tail, tile.sequence) + static_cast<std::int64_t>(skipped) * params.head_dim;
      return;
    }
    blocks =
        params.row_blocks + static_cast<std::int64_t>(tile.sequence) * params.row_blocks_stride;
    sink = head(params.sinks, blocks[0]);
    tail = head(params.tail, 0);
    blocks += kRowBlocksHeader + skipped / kPageTokens;
  }

  __device__ __forceinline__ const std::uint16_t* row(int index, int head_dim) const {
    if (index < sinks) return sink + static_cast<std::int64_t>(index) * head_dim;
    index -= sinks;
    const std::uint16_t* rows = tail;
    if (blocks != nullptr) {
      rows += blocks[index / kPageTokens] * block_stride;
      index %= kPageTokens;
    }
    return rows + static_cast<std::int64_t>(index) * head_dim;
  }
};

// Exact rows first .. first + 63, copies of the last one from the end on.
template <int kBlocks>
__device__ __forceinline__ void fetch_exact(const ExactSource& source, int head_dim, int first,
                                            int thread, std::uint32_t raw) {
  const int piece = thread % 8;
#pragma unroll
  for (int i = 0; i < 8 * kPageTokens / kFetchThreads; ++i) {
    const int row = thread / 8 + i * (kFetchThreads / 8);
    const int index = min(first + row, source.last);
    const std::uint16_t* const numbers = source.row(index, head_dim);
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) {
      const int channel = 64 * block + 8 * piece;
      const std::uint32_t target = raw + block * kTileBlockBytes + piece_offset(row, piece);
      if (channel < head_dim) {
        copy_16_async(target, numbers + channel);
      } else {
        store_shared_16(target, uint4{});
      }
    }
  }
}

template <int kBlocks>
__device__ __forceinline__ void copy_exact_keys(std::uint32_t raw, int thread, std::uint32_t tile) {
#pragma unroll
  for (int block = 0; block < kBlocks; ++block) {
    constexpr int kPieces = kTileBlockBytes / (16 * kFetchThreads);
    const int offset = block * kTileBlockBytes + 16 * thread;
    uint4 pieces[kPieces];
#pragma unroll
    for (int i = 0; i < kPieces; ++i) {
      pieces[i] = load_shared_16(raw + offset + 16 * kFetchThreads * i);
    }
#pragma unroll
    for (int i = 0; i < kPieces; ++i) {
      store_shared_16(tile + offset + 16 * kFetchThreads * i, pieces[i]);
    }
  }
}

template <int kBlocks>
__device__ __forceinline__ void transpose_exact_values(std::uint32_t raw, int warp, Lane lane,
                                                       std::uint32_t tile) {
#pragma unroll 2
  for (int i = warp; i < 16 * kBlocks; i += kUnpackWarps) {
    const int block = i / 16 * kTileBlockBytes;
    const int channels = i % 8;  // eight, as are `tokens`
    const int tokens = i / 2 & 4;
    // Lanes 8m .. 8m+7 address the tokens of matrix m.
    const std::uint32_t source =
        raw + block + 1024 * (tokens + lane.index / 8) + piece_offset(lane.index % 8, channels);
    std::uint32_t pairs[4];
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(pairs[0]), "=r"(pairs[1]), "=r"(pairs[2]), "=r"(pairs[3])
                 : "r"(source)
                 : "memory");
#pragma unroll
    for (int m = 0; m < 4; ++m) {
      store_shared_4(tile + block + 1024 * channels + piece_offset(lane.g, tokens + m) + 4 * lane.t,
                     pairs[m]);
    }
  }
}

}  // namespace kvq::cuda
