#include "kvq/runtime/cuda/pass_tables.h"

#include <algorithm>
#include <bit>
#include <utility>

namespace kvq::cuda {
namespace {

constexpr std::size_t kSectionAlignment = 128;
// Bytes for tables; the first passes need few, and each further size is an allocation.
constexpr std::size_t kLeastRoom = 16384;

template <typename T>
Section<T> section_behind(std::size_t end, std::size_t count) {
  return {(end + kSectionAlignment - 1) / kSectionAlignment * kSectionAlignment, count};
}

// Strides grow in powers of two, so that few recordings are lost as sequences grow.
std::int32_t stride_of(std::int64_t count) {
  return static_cast<std::int32_t>(
      std::bit_ceil(static_cast<std::uint64_t>(std::max<std::int64_t>(count, 8))));
}

// The first row block that a query of the open chunk reads; one before it may be there to be
// packed.
std::int64_t first_read_rows(const DeviceSequence& sequence) {
  return sequence.pages_read(sequence.length());
}

}  // namespace

DeviceSequence& device_sequence(const PassItem& item) {
  return static_cast<DeviceSequence&>(item.sequence->state());
}

Status PassTables::build(std::span<const PassItem> items, const DeviceLayout& layout,
                         std::byte* base, std::span<const int> groups, int group_count) {
  rows_ = 0;
  longest_chunk_ = 0;
  std::int64_t most_pages = 0;
  std::int64_t most_row_blocks = 0;
  for (const PassItem& item : items) {
    const DeviceSequence& sequence = device_sequence(item);
    rows_ += sequence.chunk_tokens();
    longest_chunk_ = std::max(longest_chunk_, sequence.chunk_tokens());
    most_pages = std::max(most_pages, sequence.target_pages());
    most_row_blocks =
        std::max(most_row_blocks, sequence.end_row_block() - first_read_rows(sequence));
  }
  decodes_ = longest_chunk_ == 1;
  page_stride_ = stride_of(most_pages);
  row_stride_ = stride_of(most_row_blocks + kRowBlocksHeader);
  list_pages(items);
  KVQ_RETURN_IF_ERROR(lay_out(items.size(), layout.layers()));
  fill_rows(items);
  fill_tables(items);
  fill_jobs(layout, base, groups, group_count);
  return {};
}

void PassTables::list_pages(std::span<const PassItem> items) {
  early_pages_.clear();
  late_pages_.clear();
  for (const PassItem& item : items) {
    const DeviceSequence& sequence = device_sequence(item);
    const std::int64_t sinks = sequence.spec().sinks;
    for (std::int64_t page = sequence.packed_pages(); page < sequence.target_pages(); ++page) {
      const bool early = sinks + (page + 1) * kPageTokens <= sequence.length();
      (early ? early_pages_ : late_pages_).push_back({&sequence, page});
    }
  }
}

Status PassTables::lay_out(std::size_t items, int layers) {
  const auto rows = static_cast<std::size_t>(rows_);
  const std::size_t pages = early_pages_.size() + late_pages_.size();
  places_ = section_behind<RowPlace>(0, rows);
  lengths_ = section_behind<SequenceLength>(places_.end(), rows);
  tables_ = section_behind<std::int32_t>(lengths_.end(), rows);
  page_table_ = section_behind<std::int32_t>(tables_.end(), items * page_stride_);
  row_blocks_ = section_behind<std::int32_t>(page_table_.end(), items * row_stride_);
  starts_ = section_behind<std::int32_t>(row_blocks_.end(), items + 1);
  chunks_ = section_behind<ChunkLength>(starts_.end(), items);
  wanted_ = section_behind<std::int32_t>(chunks_.end(), 2 * items);
  jobs_ = section_behind<PackJob>(wanted_.end(), pages * layers);
  bytes_ = jobs_.end();
  const std::size_t room = std::bit_ceil(std::max(bytes_, kLeastRoom));
  KVQ_RETURN_IF_ERROR(host_.reserve(room));
  return device_.reserve(room);
}

void PassTables::fill_rows(std::span<const PassItem> items) {
  const std::span<RowPlace> places = host(places_);
  const std::span<SequenceLength> lengths = host(lengths_);
  const std::span<std::int32_t> tables = host(tables_);
  const std::span<std::int32_t> starts = host(starts_);
  std::size_t row = 0;
  for (std::size_t item = 0; item < items.size(); ++item) {
    const DeviceSequence& sequence = device_sequence(items[item]);
    const std::int64_t sinks = sequence.spec().sinks;
    starts[item] = static_cast<std::int32_t>(row);
    host(chunks_)[item] = {
        static_cast<std::int32_t>(sequence.length() + sequence.chunk_tokens()),
        static_cast<std::int32_t>(sinks + first_read_rows(sequence) * kPageTokens)};
    host(wanted_)[2 * item] = 0;
    host(wanted_)[2 * item + 1] = items[item].logit_rows;
    for (int token = 0; token < sequence.chunk_tokens(); ++token, ++row) {
      const std::int64_t position = sequence.length() + token;
      const std::int64_t behind = position - sinks;  // sinks
      places[row] = behind < 0
                        ? RowPlace{sequence.sink_block(), static_cast<std::int32_t>(-1 - position)}
                        : RowPlace{sequence.row_block(behind / kPageTokens),
                                   static_cast<std::int32_t>(behind % kPageTokens)};
      const std::int64_t pages = sequence.pages_read(position);
      lengths[row] = {
          static_cast<std::int32_t>(pages),
          static_cast<std::int32_t>(std::min(sinks, position + 1)),
          static_cast<std::int32_t>(std::max<std::int64_t>(behind + 1 - pages * kPageTokens, 0))};
      tables[row] = static_cast<std::int32_t>(item);
    }
  }
  starts[items.size()] = static_cast<std::int32_t>(row);
}

void PassTables::fill_tables(std::span<const PassItem> items) {
  std::int32_t* pages = host(page_table_).data();
  std::int32_t* rows = host(row_blocks_).data();
  for (const PassItem& item : items) {
    const DeviceSequence& sequence = device_sequence(item);
    std::ranges::copy(sequence.page_blocks(), pages);
    rows[0] = sequence.sink_block();
    const std::int64_t first = first_read_rows(sequence);
    rows[1] = static_cast<std::int32_t>(first);
    for (std::int64_t page = first; page < sequence.end_row_block(); ++page) {
      rows[kRowBlocksHeader + page - first] = sequence.row_block(page);
    }
    pages += page_stride_;
    rows += row_stride_;
  }
}

void PassTables::fill_jobs(const DeviceLayout& layout, std::byte* base, std::span<const int> groups,
                           int group_count) {
  const std::span<PackJob> jobs = host(jobs_);
  std::size_t next = 0;
  const auto add = [&](const PageToPack& entry, int layer) {
    std::byte* const rows = base + entry.sequence->row_block(entry.page) * kBlockUnit;
    const auto* key = reinterpret_cast<const std::uint16_t*>(rows + layout.row_offset(layer));
    jobs[next++] = {
        key, key + layout.value_offset(kPageTokens),
        base + entry.sequence->page_block(entry.page) * kBlockUnit + layout.page_offset(layer)};
  };
  early_.assign(static_cast<std::size_t>(group_count), {});
  late_.assign(static_cast<std::size_t>(layout.layers()), {});
  for (int group = 0; group < group_count; ++group) {
    const std::size_t first = next;
    for (int layer = 0; layer < layout.layers(); ++layer) {
      if (groups[static_cast<std::size_t>(layer)] != group) continue;
      for (const PageToPack& entry : early_pages_) add(entry, layer);
    }
    early_[static_cast<std::size_t>(group)] = {first, static_cast<std::int32_t>(next - first)};
  }
  for (int layer = 0; layer < layout.layers(); ++layer) {
    const std::size_t first = next;
    for (const PageToPack& entry : late_pages_) add(entry, layer);
    late_[static_cast<std::size_t>(layer)] = {first, static_cast<std::int32_t>(next - first)};
  }
}

Status PassTables::copy_to_device(cudaStream_t stream) {
  return check(
      cudaMemcpyAsync(device_.as<void>(), host_.as<void>(), bytes_, cudaMemcpyHostToDevice, stream),
      "tables of a pass");
}

void PassTables::add_to_key(RecordingKey& key) const {
  key.push_back(reinterpret_cast<std::uintptr_t>(device_.as<void>()));
  key.push_back(static_cast<std::uintptr_t>(page_stride_));
  key.push_back(static_cast<std::uintptr_t>(row_stride_));
}

}  // namespace kvq::cuda
