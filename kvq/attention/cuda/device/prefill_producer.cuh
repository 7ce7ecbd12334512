// The part of the warpgroups that unpack.
#pragma once

#include <type_traits>

#include "kvq/attention/cuda/device/prefill_memory.cuh"
#include "kvq/attention/cuda/device/prefill_unpack.cuh"

namespace kvq::cuda {

// The warpgroup that unpacks keys, or values.
template <int kBlocks, bool kKey>
class PrefillProducer {
 public:
  __device__ PrefillProducer(const PrefillParams& params, const PrefillTile& tile,
                             const PrefillMemory& memory)
      : params_(params),
        layout_(kKey ? params.key : params.value),
        tile_(tile),
        slots_(kKey ? memory.keys : memory.values),
        slot_bytes_(memory.slot_bytes),
        raw_(kKey ? memory.raw_keys : memory.raw_values),
        raw_barriers_(kKey ? memory.raw_key_barriers : memory.raw_value_barriers),
        ring_(kKey ? memory.key_barriers : memory.value_barriers, params.slots),
        lane_(this_lane()),
        thread_(static_cast<int>(threadIdx.x % kFetchThreads)),
        warp_(thread_ / 32) {}

  __device__ __forceinline__ void run() {
    if (tile_.pages > 0) unpack_pages();
    copy_exact_rows();
  }

 private:
  __device__ static void synchronize() {
    synchronize_group<kKey ? GroupBarrier::kKeys : GroupBarrier::kValues>();
  }

  // The width is a switch around everything, so that what depends on it is computed once.
  __device__ __forceinline__ void unpack_pages() {
    switch (layout_.bits) {
      case Bits::k1:
        return unpack_pages_of<Bits::k1>();
      case Bits::kTernary:
        return unpack_pages_of<Bits::kTernary>();
      case Bits::k2:
        return unpack_pages_of<Bits::k2>();
      case Bits::k3:
        return unpack_pages_of<Bits::k3>();
      case Bits::k4:
        return unpack_pages_of<Bits::k4>();
      case Bits::k5:
        return unpack_pages_of<Bits::k5>();
      case Bits::k6:
        return unpack_pages_of<Bits::k6>();
      case Bits::k8:
        return unpack_pages_of<Bits::k8>();
      case Bits::k16:
        return walk_pages<Bits::k16, PlainRowWiseParameters>();
    }
  }
  template <Bits kBits>
  __device__ __forceinline__ void unpack_pages_of() {
    // Keys are row-wise and values depth-wise where parameters belong to tokens.
    using Plain = std::conditional_t<kKey, PlainRowWiseParameters, PlainDepthWiseParameters>;
    if (layout_.plain) {
      walk_pages<kBits, Plain>();
    } else if (layout_.depth_wise) {
      walk_pages<kBits, DepthWiseParameters>();
    } else {
      walk_pages<kBits, RowWiseParameters>();
    }
  }

  template <Bits kBits, class Parameters>
  __device__ __forceinline__ void walk_pages() {
    const bool ahead = params_.raw_buffers > 1;
    std::uint32_t parity = 0;
    int buffer = 0;
    next_page_ = table(0);
    if (ahead) fetch_page(0, 0);
    for (int page = 0; page < tile_.pages; ++page) {
      if (!ahead) {
        synchronize();
        fetch_page(page, 0);
      }
      wait_page(raw_barrier(buffer), parity);
      synchronize();  // all are done with the last page
      if (ahead && page + 1 < tile_.pages) fetch_page(page + 1, buffer ^ 1);
      unpack_steps<kBits, kKey, Parameters>(layout_, raw_ + buffer * params_.raw_bytes, warp_,
                                            lane_, begin_slot());
      end_slot();
      if (ahead) buffer ^= 1;
      if (buffer == 0) parity ^= 1;
    }
  }
  __device__ Barrier raw_barrier(int buffer) const { return {raw_barriers_ + 8 * buffer}; }
  // Index of a page in memory.
  __device__ int table(int page) const {
    if (page >= tile_.pages) return 0;
    return params_
        .page_table[static_cast<std::int64_t>(tile_.sequence) * params_.table_stride + page];
  }
  // Pages in turn; the next index is loaded meanwhile.
  __device__ __forceinline__ void fetch_page(int page, int buffer) {
    if (!kPageCopyByAll && thread_ != 0) return;
    const std::byte* const part = params_.pages + next_page_ * params_.page_stride +
                                  tile_.kv_head * params_.head_stride + layout_.first;
    start_page(part, layout_.bytes, thread_, raw_ + buffer * params_.raw_bytes,
               raw_barrier(buffer));
    next_page_ = table(page + 1);
  }

  __device__ __forceinline__ void copy_exact_rows() {
    const bool ahead = params_.raw_buffers > 1;
    int buffer = 0;
    synchronize();
    const ExactSource rows(params_, tile_, kKey);
    if (ahead) fetch_rows(rows, 0, 0);
    for (int first = 0; first < tile_.exact_rows; first += kPageTokens) {
      if (!ahead) {
        synchronize();
        fetch_rows(rows, first, 0);
      }
      wait_copies();
      synchronize();
      const std::uint32_t source = raw_ + buffer * params_.raw_bytes;
      if (ahead) buffer ^= 1;
      if (ahead && first + kPageTokens < tile_.exact_rows) {
        fetch_rows(rows, first + kPageTokens, buffer);
      }
      const std::uint32_t target = begin_slot();
      if constexpr (kKey) {
        copy_exact_keys<kBlocks>(source, thread_, target);
      } else {
        transpose_exact_values<kBlocks>(source, warp_, lane_, target);
      }
      end_slot();
    }
  }
  __device__ __forceinline__ void fetch_rows(const ExactSource& rows, int first, int buffer) const {
    fetch_exact<kBlocks>(rows, params_.head_dim, first, thread_, raw_ + buffer * params_.raw_bytes);
  }

  // Where the next tile goes, once there is room.
  __device__ __forceinline__ std::uint32_t begin_slot() const {
    ring_.wait_released();
    return slots_ + ring_.index() * slot_bytes_;
  }
  __device__ __forceinline__ void end_slot() {
    publish_to_products();
    __syncwarp();
    if (lane_.index == 0) ring_.filled().arrive();
    ring_.advance();
  }

  const PrefillParams& params_;
  const PackedTensor& layout_;
  const PrefillTile& tile_;
  std::uint32_t slots_;  // shared addresses
  int slot_bytes_;
  std::uint32_t raw_;
  std::uint32_t raw_barriers_;
  Ring ring_;
  Lane lane_;
  int thread_;  // of the warpgroup
  int warp_;
  int next_page_;  // in memory
};

}  // namespace kvq::cuda
