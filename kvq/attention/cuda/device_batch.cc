#include "kvq/attention/cuda/device_batch.h"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <random>
#include <stdexcept>

namespace kvq::cuda {
namespace {

void check(cudaError_t error) {
  if (error != cudaSuccess) throw std::runtime_error(cudaGetErrorString(error));
}

}  // namespace

DeviceBuffer::DeviceBuffer(std::size_t bytes) : memory_(DeviceArray::create(bytes).value()) {
  check(cudaMemset(get(), 0xff, memory_.bytes()));
}

void* DeviceBatch::upload(const void* data, std::size_t bytes) {
  buffers_.push_back(std::make_unique<DeviceBuffer>(bytes));
  check(cudaMemcpy(buffers_.back()->get(), data, bytes, cudaMemcpyHostToDevice));
  return buffers_.back()->get();
}

DeviceBatch::DeviceBatch(const std::vector<LayerView>& views, std::uint64_t seed) {
  batch_.sequences = static_cast<int>(views.size());
  std::vector<SequenceLength> lengths;
  lengths.reserve(views.size());
  for (const LayerView& view : views) {
    lengths.push_back({static_cast<std::int32_t>(view.pages.size()),
                       static_cast<std::int32_t>(view.sinks.count),
                       static_cast<std::int32_t>(view.length - view.sinks.count -
                                                 view.pages.size() * kPageTokens)});
  }
  batch_.lengths =
      static_cast<SequenceLength*>(upload(lengths.data(), lengths.size() * sizeof(SequenceLength)));
  copy_pages(views, seed);
  batch_.sinks = copy_rows(views, &LayerView::sinks);
  batch_.tail = copy_rows(views, &LayerView::tail);
}

void DeviceBatch::copy_pages(const std::vector<LayerView>& views, std::uint64_t seed) {
  std::size_t count = 3;
  std::size_t longest = 1;
  for (const LayerView& view : views) {
    count += view.pages.size();
    longest = std::max(longest, view.pages.size());
  }
  std::vector<std::int32_t> order(count);
  std::iota(order.begin(), order.end(), 0);
  std::shuffle(order.begin(), order.end(), std::mt19937_64(seed));

  const std::size_t page_bytes = views[0].format->page_bytes;
  const std::size_t heads = static_cast<std::size_t>(views[0].kv_heads);
  const std::size_t stride = heads * page_bytes;
  std::vector<std::byte> pages(count * stride, std::byte{0xff});
  std::vector<std::int32_t> table(views.size() * longest, -1);
  std::size_t used = 0;
  for (std::size_t s = 0; s < views.size(); ++s) {
    for (std::size_t i = 0; i < views[s].pages.size(); ++i) {
      const PageRef& page = views[s].pages[i];
      const std::int32_t index = order[used++];
      table[s * longest + i] = index;
      for (std::size_t head = 0; head < heads; ++head) {
        std::memcpy(pages.data() + index * stride + head * page_bytes,
                    page.data + static_cast<std::int64_t>(head) * page.head_stride, page_bytes);
      }
    }
  }
  batch_.pages = static_cast<std::byte*>(upload(pages.data(), pages.size()));
  batch_.page_table =
      static_cast<std::int32_t*>(upload(table.data(), table.size() * sizeof(std::int32_t)));
  batch_.page_stride = static_cast<std::int64_t>(stride);
  batch_.head_stride = static_cast<std::int64_t>(page_bytes);
  batch_.table_stride = static_cast<std::int32_t>(longest);
}

RowBlock DeviceBatch::copy_rows(const std::vector<LayerView>& views, ExactRows LayerView::*part) {
  const std::size_t head_dim = static_cast<std::size_t>(views[0].format->head_dim());
  const std::size_t heads = static_cast<std::size_t>(views[0].kv_heads);
  std::int64_t most = 1;
  for (const LayerView& view : views) most = std::max(most, (view.*part).count);
  const std::size_t head_stride = most * head_dim;
  const std::size_t elements = views.size() * heads * head_stride;
  std::vector<Half> rows[2] = {std::vector<Half>(elements, Half{0x7e00}),
                               std::vector<Half>(elements, Half{0x7e00})};
  for (std::size_t s = 0; s < views.size(); ++s) {
    const ExactRows& source = views[s].*part;
    for (std::size_t head = 0; head < heads; ++head) {
      const std::size_t to = (s * heads + head) * head_stride;
      const std::int64_t from = static_cast<std::int64_t>(head) * source.head_stride;
      const std::size_t count = source.count * head_dim;
      if (count == 0) continue;
      std::copy_n(source.key + from, count, rows[0].begin() + to);
      std::copy_n(source.value + from, count, rows[1].begin() + to);
    }
  }
  const auto copy = [&](const std::vector<Half>& numbers) {
    return static_cast<const std::uint16_t*>(upload(numbers.data(), numbers.size() * sizeof(Half)));
  };
  return {copy(rows[0]), copy(rows[1]), static_cast<std::int64_t>(heads * head_stride),
          static_cast<std::int64_t>(head_stride)};
}

}  // namespace kvq::cuda
