// What the kernels of a pass read about its tokens, built on the host and copied to the device in
// one piece. Arrays lie at the same place for passes of the same shape, so that recordings find
// them.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kvq/attention/cuda/prefill_params.h"
#include "kvq/cache/cuda/append_rows.h"
#include "kvq/cache/cuda/device_sequence.h"
#include "kvq/codec/cuda/pack_params.h"
#include "kvq/runtime/ops.h"
#include "kvq/runtime/pass_item.h"

namespace kvq::cuda {

// One array of the piece.
template <typename T>
struct Section {
  std::size_t offset = 0;  // bytes from the start
  std::size_t count = 0;
  std::size_t end() const { return offset + count * sizeof(T); }
};

// Pages that the pass packs.
struct PackRange {
  std::size_t first = 0;  // in the array of jobs
  std::int32_t count = 0;
};

class PassTables {
 public:
  // Every item's sequence is a DeviceSequence of `layout` with an open chunk.
  //   base    start of the arena
  //   groups  of every layer: layers with the same number have pages of the same format
  Status build(std::span<const PassItem> items, const DeviceLayout& layout, std::byte* base,
               std::span<const int> groups, int group_count);
  Status copy_to_device(cudaStream_t stream);

  int rows() const { return rows_; }
  // Every item is one token.
  bool decodes() const { return decodes_; }
  int longest_chunk() const { return longest_chunk_; }

  // Device pointers, valid until the next build().
  const RowPlace* places() const { return at(places_); }              // [rows]
  const SequenceLength* lengths() const { return at(lengths_); }      // [rows], of each row's query
  const std::int32_t* tables() const { return at(tables_); }          // [rows], the row's item
  const std::int32_t* page_table() const { return at(page_table_); }  // [items, page_stride]
  const std::int32_t* row_blocks() const { return at(row_blocks_); }  // [items, row_stride]
  const std::int32_t* starts() const { return at(starts_); }          // [items + 1], first rows
  const ChunkLength* chunks() const { return at(chunks_); }           // [items]
  const std::int32_t* wanted() const { return at(wanted_); }          // [items, 2], 0, logit_rows
  const PackJob* jobs() const { return at(jobs_); }
  std::int32_t page_stride() const { return page_stride_; }
  std::int32_t row_stride() const { return row_stride_; }

  // Pages of all layers of a group whose rows were there before the pass.
  PackRange early(int group) const { return early_[static_cast<std::size_t>(group)]; }
  // Pages of a layer that hold rows of the pass.
  PackRange late(int layer) const { return late_[static_cast<std::size_t>(layer)]; }

  // What recordings depend on.
  void add_to_key(RecordingKey& key) const;

 private:
  struct PageToPack {
    const DeviceSequence* sequence;
    std::int64_t page;
  };

  template <typename T>
  T* at(const Section<T>& section) const {
    return reinterpret_cast<T*>(device_.as<std::byte>() + section.offset);
  }
  template <typename T>
  std::span<T> host(const Section<T>& section) const {
    return {reinterpret_cast<T*>(host_.as<std::byte>() + section.offset), section.count};
  }
  void list_pages(std::span<const PassItem> items);
  Status lay_out(std::size_t items, int layers);
  void fill_rows(std::span<const PassItem> items);
  void fill_tables(std::span<const PassItem> items);
  void fill_jobs(const DeviceLayout& layout, std::byte* base, std::span<const int> groups,
                 int group_count);

  int rows_ = 0;
  bool decodes_ = false;
  int longest_chunk_ = 0;
  std::int32_t page_stride_ = 0;
  std::int32_t row_stride_ = 0;
  std::vector<PageToPack> early_pages_;
  std::vector<PageToPack> late_pages_;
  std::vector<PackRange> early_;
  std::vector<PackRange> late_;

  Section<RowPlace> places_;
  Section<SequenceLength> lengths_;
  Section<std::int32_t> tables_;
  Section<std::int32_t> page_table_;
  Section<std::int32_t> row_blocks_;
  Section<std::int32_t> starts_;
  Section<ChunkLength> chunks_;
  Section<std::int32_t> wanted_;
  Section<PackJob> jobs_;
  std::size_t bytes_ = 0;
  PinnedArray host_;
  DeviceArray device_;
};

DeviceSequence& device_sequence(const PassItem& item);

}  // namespace kvq::cuda
