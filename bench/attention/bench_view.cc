#include "bench/attention/bench_view.h"

#include <algorithm>
#include <cstring>
#include <random>

#include "kvq/codec/pack.h"

namespace kvq {
namespace {

constexpr std::int64_t kExtentPages = 16;  // as the cache's extents

// Rows [count, head_dim] of keys of the kind of data.
void random_keys(BenchData data, int count, int head_dim, std::mt19937_64& random, Half* rows) {
  std::normal_distribution<float> normal;
  for (int i = 0; i < count; ++i) {
    for (int channel = 0; channel < head_dim; ++channel) {
      float x = normal(random);
      if (data == BenchData::kLargeChannels && channel % (head_dim / 5) == 3) {
        const int large = channel / (head_dim / 5);  // how many came before
        x = 4 * x + 8.0F + 2.0F * static_cast<float>(large);
      }
      if (data == BenchData::kTwoChannels && channel % (head_dim / 2) == 5) x *= 25;
      rows[i * head_dim + channel] = to_half(x);
    }
  }
}

void random_values(int count, int head_dim, std::mt19937_64& random, Half* rows) {
  std::normal_distribution<float> normal;
  for (int i = 0; i < count * head_dim; ++i) rows[i] = to_half(normal(random));
}

}  // namespace

std::vector<float> bench_query(int query_heads, int head_dim, BenchData data, std::uint64_t seed) {
  std::mt19937_64 random(seed + 77);
  std::normal_distribution<float> normal;
  std::vector<float> query(static_cast<std::size_t>(query_heads) * head_dim);
  const float length =
      data == BenchData::kPeaked || data == BenchData::kLargeChannels ? 4.0F : 1.0F;
  for (float& x : query) x = length * normal(random);
  return query;
}

Result<std::unique_ptr<BenchView>> BenchView::create(const BenchViewShape& shape,
                                                     std::int64_t distinct_pages, int copies) {
  std::unique_ptr<BenchView> view(new BenchView);
  view->shape_ = shape;
  KVQ_ASSIGN_OR_RETURN(view->format_, PageFormat::create(shape.spec, shape.head_dim));
  const std::int64_t boundary = packed_boundary(shape.tokens - 1, shape.sinks, shape.window);
  view->page_count_ = (boundary - shape.sinks) / kPageTokens;
  if (view->page_count_ < 1) {
    return fail(
        "bench attention: {} tokens are fewer than a page behind {} sinks and a window of {}",
        shape.tokens, shape.sinks, shape.window);
  }
  view->fill_rows();
  KVQ_RETURN_IF_ERROR(
      view->fill_pages(std::min(distinct_pages, view->page_count_), copies, host_isa()));
  return view;
}

Status BenchView::fill_pages(std::int64_t distinct_pages, int copies, Isa isa) {
  const std::size_t page_bytes = format_.page_bytes;
  const int rows = kPageTokens * shape_.head_dim;
  std::vector<Half> key(rows);
  std::vector<Half> value(rows);
  const std::shared_ptr<PagePool> pool = PagePool::create(0);
  KVQ_ASSIGN_OR_RETURN(const auto packed, pool->allocate(distinct_pages * shape_.kv_heads *
                                                         static_cast<std::int64_t>(page_bytes)));
  std::mt19937_64 random(shape_.seed);
  for (std::int64_t i = 0; i < distinct_pages * shape_.kv_heads; ++i) {
    random_keys(shape_.data, kPageTokens, shape_.head_dim, random, key.data());
    random_values(kPageTokens, shape_.head_dim, random, value.data());
    pack_page(format_, key.data(), value.data(), packed->data() + i * page_bytes, isa);
  }
  const std::int64_t head_stride = kExtentPages * static_cast<std::int64_t>(page_bytes);
  for (int copy = 0; copy < copies; ++copy) {
    std::vector<PageRef>& pages = pages_.emplace_back();
    for (std::int64_t page = 0; page < page_count_; ++page) {
      if (page % kExtentPages == 0) {
        KVQ_ASSIGN_OR_RETURN(auto block, pool->allocate(head_stride * shape_.kv_heads));
        blocks_.push_back(std::move(block));
      }
      std::byte* const data =
          blocks_.back()->data() + page % kExtentPages * static_cast<std::int64_t>(page_bytes);
      pages.push_back({data, head_stride});
      for (int head = 0; head < shape_.kv_heads; ++head) {
        const std::int64_t source = page % distinct_pages * shape_.kv_heads + head;
        std::memcpy(data + head * head_stride, packed->data() + source * page_bytes, page_bytes);
      }
    }
  }
  return {};
}

// Sinks, then the tail.
void BenchView::fill_rows() {
  exact_rows_ = shape_.tokens - page_count_ * kPageTokens;
  const std::size_t count = static_cast<std::size_t>(exact_rows_) * shape_.head_dim;
  exact_key_.resize(count * shape_.kv_heads);
  exact_value_.resize(count * shape_.kv_heads);
  std::mt19937_64 random(shape_.seed + 1);
  const int rows = static_cast<int>(exact_rows_) * shape_.kv_heads;
  random_keys(shape_.data, rows, shape_.head_dim, random, exact_key_.data());
  random_values(rows, shape_.head_dim, random, exact_value_.data());
}

LayerView BenchView::view(int copy) const {
  const std::int64_t stride = exact_rows_ * shape_.head_dim;
  const std::int64_t sinks = std::min<std::int64_t>(shape_.sinks, shape_.tokens);
  LayerView view;
  view.format = &format_;
  view.kv_heads = shape_.kv_heads;
  view.length = shape_.tokens;
  view.sink_tokens = shape_.sinks;
  view.window = shape_.window;
  view.sinks = {exact_key_.data(), exact_value_.data(), stride, 0, sinks};
  view.pages = pages_[copy];
  view.tail = {exact_key_.data() + sinks * shape_.head_dim,
               exact_value_.data() + sinks * shape_.head_dim, stride,
               shape_.sinks + page_count_ * kPageTokens, exact_rows_ - sinks};
  return view;
}

std::int64_t BenchView::bytes() const {
  const std::int64_t pages = page_count_ * static_cast<std::int64_t>(format_.page_bytes);
  const std::int64_t exact =
      2 * exact_rows_ * shape_.head_dim * static_cast<std::int64_t>(sizeof(Half));
  return shape_.kv_heads * (pages + exact);
}

}  // namespace kvq
