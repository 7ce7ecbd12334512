#include "kvq/cache/cuda/device_layout.h"

namespace kvq::cuda {

DeviceLayout::DeviceLayout(const CacheSpec& spec)
    : kv_heads_(spec.kv_heads), head_dim_(spec.head_dim), sinks_(spec.sinks) {
  std::int64_t offset = 0;
  for (const LayerSpec& layer : spec.layers) {
    formats_.push_back(PageFormat::create(layer, spec.head_dim).value());
    page_offsets_.push_back(offset);
    offset += kv_heads_ * static_cast<std::int64_t>(formats_.back().page_bytes);
  }
  page_offsets_.push_back(offset);
}

}  // namespace kvq::cuda
