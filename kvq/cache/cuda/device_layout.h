// What the blocks of a cache on a device hold. All layers of a sequence grow together, so 64 tokens
// of all layers are one block, and one list of blocks stands for every layer:
//
//   page block   [layers][kv_heads][page_bytes of the layer]
//   row block    [layers][key, value][kv_heads][64 tokens][head_dim]     fp16, a page's tokens
//   sink block   [layers][key, value][kv_heads][sinks][head_dim]         fp16
#pragma once

#include <cstdint>
#include <vector>

#include "kvq/base/half.h"
#include "kvq/cache/cache_spec.h"
#include "kvq/codec/page_format.h"

namespace kvq::cuda {

class DeviceLayout {
 public:
  // `spec` is valid.
  explicit DeviceLayout(const CacheSpec& spec);

  int layers() const { return static_cast<int>(formats_.size()); }
  int kv_heads() const { return kv_heads_; }
  int head_dim() const { return head_dim_; }
  const PageFormat& format(int layer) const { return formats_[static_cast<std::size_t>(layer)]; }

  std::int64_t page_block_bytes() const { return page_offsets_.back(); }
  std::int64_t row_block_bytes() const { return layers() * layer_rows_bytes(kPageTokens); }
  std::int64_t sink_block_bytes() const { return layers() * layer_rows_bytes(sinks_); }

  // Where a layer starts, in bytes from the start of its block.
  std::int64_t page_offset(int layer) const {
    return page_offsets_[static_cast<std::size_t>(layer)];
  }
  std::int64_t row_offset(int layer) const { return layer * layer_rows_bytes(kPageTokens); }
  std::int64_t sink_offset(int layer) const { return layer * layer_rows_bytes(sinks_); }

  // In fp16 numbers, of blocks of `rows` tokens: from kv head to kv head, from keys to values.
  std::int64_t head_stride(int rows) const { return std::int64_t{rows} * head_dim_; }
  std::int64_t value_offset(int rows) const { return kv_heads_ * head_stride(rows); }
  int sinks() const { return sinks_; }

 private:
  std::int64_t layer_rows_bytes(int rows) const {
    return 2 * value_offset(rows) * static_cast<std::int64_t>(sizeof(Half));
  }

  int kv_heads_;
  int head_dim_;
  int sinks_;
  std::vector<PageFormat> formats_;         // of every layer
  std::vector<std::int64_t> page_offsets_;  // of every layer, and the end
};

}  // namespace kvq::cuda
