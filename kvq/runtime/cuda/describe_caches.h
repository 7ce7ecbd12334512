// Where a layer's caches of the running pass lie, in the words of the attention kernels.
#pragma once

#include "kvq/cache/cuda/device_layout.h"
#include "kvq/runtime/cuda/pass_tables.h"

namespace kvq::cuda {

// Blocks of `tokens` rows, whose keys start `offset` bytes from their block's start.
inline RowBlock exact_rows(const DeviceLayout& layout, const std::byte* base, std::int64_t offset,
                           int tokens) {
  const auto* key = reinterpret_cast<const std::uint16_t*>(base + offset);
  return {key, key + layout.value_offset(tokens),
          kBlockUnit / static_cast<std::int64_t>(sizeof(Half)), layout.head_stride(tokens)};
}

// batch: a DecodeBatch or PrefillBatch
template <typename Batch>
void describe_caches(const DeviceLayout& layout, const std::byte* base, int layer,
                     const PassTables& tables, Batch& batch) {
  batch.pages = base + layout.page_offset(layer);
  batch.page_table = tables.page_table();
  batch.page_stride = kBlockUnit;
  batch.head_stride = static_cast<std::int64_t>(layout.format(layer).page_bytes);
  batch.table_stride = tables.page_stride();
  batch.sinks = exact_rows(layout, base, layout.sink_offset(layer), layout.sinks());
  batch.tail = exact_rows(layout, base, layout.row_offset(layer), kPageTokens);
  batch.row_blocks = tables.row_blocks();
  batch.row_blocks_stride = tables.row_stride();
}

}  // namespace kvq::cuda
