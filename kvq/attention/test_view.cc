#include "kvq/attention/test_view.h"

#include <algorithm>
#include <random>

#include "kvq/codec/pack.h"

namespace kvq {

std::vector<float> random_normal(std::size_t count, std::uint64_t seed) {
  std::mt19937_64 engine(seed);
  std::normal_distribution<float> normal;
  std::vector<float> numbers(count);
  for (float& number : numbers) number = normal(engine);
  return numbers;
}

TestView::TestView(const TestViewShape& shape)
    : shape_(shape), format_(PageFormat::create(shape.spec, shape.head_dim).value()) {
  const std::size_t count = shape.kv_heads * shape.length * shape.head_dim;
  const std::vector<float> numbers = random_normal(2 * count, shape.seed);
  key_.resize(count);
  value_.resize(count);
  for (std::size_t i = 0; i < count; ++i) {
    const std::size_t channel = i % shape.head_dim;
    const float mean = channel % 16 == 3 ? 2.0F : 0.0F;
    const float spread = channel % 8 == 5 ? 2.0F : 1.0F;
    key_[i] = to_half(mean + spread * numbers[i]);
    value_[i] = to_half(numbers[count + i]);
  }
  pack_pages();
  view_ = at(shape.length, shape.chunk);
}

void TestView::pack_pages() {
  const std::int64_t boundary = packed_boundary(shape_.length - 1, shape_.sinks, shape_.window);
  const std::int64_t count = (boundary - shape_.sinks) / kPageTokens;
  const std::size_t page_lines = format_.page_bytes / kPageAlignment;
  lines_.resize(count * shape_.kv_heads * page_lines);
  for (std::int64_t page = 0; page < count; ++page) {
    Line* first = lines_.data() + page * shape_.kv_heads * page_lines;
    pages_.push_back({first->bytes, static_cast<std::int64_t>(format_.page_bytes)});
    for (int head = 0; head < shape_.kv_heads; ++head) {
      const std::size_t row = head * shape_.length + shape_.sinks + page * kPageTokens;
      pack_page(format_, key_.data() + row * shape_.head_dim, value_.data() + row * shape_.head_dim,
                (first + head * page_lines)->bytes, host_isa());
    }
  }
}

LayerView TestView::at(std::int64_t length, std::int64_t chunk) const {
  const std::int64_t stride = shape_.length * shape_.head_dim;
  const auto rows = [&](std::int64_t first, std::int64_t count) {
    const std::int64_t offset = first * shape_.head_dim;
    return ExactRows{key_.data() + offset, value_.data() + offset, stride, first, count};
  };
  const auto boundary = [&](std::int64_t position) {
    return packed_boundary(position, shape_.sinks, shape_.window);
  };
  const std::int64_t tail = std::min(boundary(length - chunk), length);
  const std::int64_t packed = (boundary(length - 1) - shape_.sinks) / kPageTokens;
  LayerView view;
  view.format = &format_;
  view.kv_heads = shape_.kv_heads;
  view.length = length;
  view.sink_tokens = shape_.sinks;
  view.window = shape_.window;
  view.sinks = rows(0, std::min<std::int64_t>(shape_.sinks, length));
  view.pages = std::span(pages_).first(packed);
  view.tail = rows(tail, length - tail);
  return view;
}

}  // namespace kvq
