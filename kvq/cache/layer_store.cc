#include "kvq/cache/layer_store.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "kvq/codec/pack.h"

namespace kvq {
namespace {

constexpr std::int64_t round_up_to_pages(std::int64_t rows) {
  return (rows + kPageTokens - 1) / kPageTokens * kPageTokens;
}

// Room beyond the rows needed: held rows move to the start of the tail only once in so many tokens.
// The one row more keeps the heads' rows of a token out of the same sets of the first-level cache.
constexpr std::int64_t tail_capacity(std::int64_t rows) {
  return round_up_to_pages(rows + rows / 8) + kPageTokens + 1;
}

// values: [count]
bool all_finite(const Half* values, int count) {
  unsigned bad = 0;
  for (int i = 0; i < count; ++i) bad |= (values[i].bits & 0x7c00U) == 0x7c00U ? 1U : 0U;
  return bad == 0;
}

}  // namespace

LayerStore::LayerStore(const PageFormat& format, const CacheSpec& spec)
    : format_(&format),
      kv_heads_(spec.kv_heads),
      sinks_(spec.sinks),
      window_(spec.window),
      first_(spec.sinks),
      pages_(static_cast<std::int64_t>(format.page_bytes), spec.kv_heads),
      tail_origin_(spec.sinks) {}

LayerView LayerStore::view() const {
  LayerView view;
  view.format = format_;
  view.kv_heads = kv_heads_;
  view.length = length_;
  view.sink_tokens = sinks_;
  view.window = window_;
  view.pages = pages_.pages();
  view.sinks.count = std::min<std::int64_t>(sinks_, length_);
  if (!sink_rows_.empty()) {
    view.sinks.key = sink_rows_.key(0, 0);
    view.sinks.value = sink_rows_.value(0, 0);
    view.sinks.head_stride = sink_rows_.head_stride();
  }
  view.tail.first = first_;
  view.tail.count = std::max<std::int64_t>(length_ - first_, 0);
  if (!tail_.empty()) {
    view.tail.key = tail_.key(0, tail_row(first_));
    view.tail.value = tail_.value(0, tail_row(first_));
    view.tail.head_stride = tail_.head_stride();
  }
  return view;
}

ByteCount LayerStore::bytes() const {
  ByteCount bytes;
  bytes.pages = pages_.used_bytes();
  bytes.exact = block_bytes(length_ - pages_.count() * kPageTokens);
  bytes.allocated =
      pages_.allocated_bytes() + sink_rows_.allocated_bytes() + tail_.allocated_bytes();
  return bytes;
}

std::int64_t LayerStore::needed_first() const {
  const std::int64_t boundary = packed_boundary(length_, sinks_, window_);
  return std::max(first_, std::min(boundary, page_start(pages_.count())));
}

std::int64_t LayerStore::tail_rows(std::int64_t first, int tokens) const {
  return std::max<std::int64_t>(length_ + tokens - first, 0);
}

std::int64_t LayerStore::block_bytes(std::int64_t rows) const {
  return RowBlock::bytes(rows, kv_heads_, format_->head_dim());
}

void LayerStore::list_chunk_blocks(int tokens, std::vector<std::int64_t>& sizes) {
  if (sinks_ > 0 && sink_rows_.empty()) sizes.push_back(block_bytes(sinks_));
  pages_.list_blocks(packed_pages(length_ + tokens, sinks_, window_), sizes);
  const std::int64_t rows = tail_rows(needed_first(), tokens);
  if (rows > tail_.capacity()) sizes.push_back(block_bytes(tail_capacity(rows)));
}

void LayerStore::begin_chunk(int tokens, BlockSource& blocks) {
  if (sinks_ > 0 && sink_rows_.empty()) {
    sink_rows_ = RowBlock(blocks.take(), sinks_, kv_heads_, format_->head_dim());
  }
  chunk_tokens_ = tokens;
  target_pages_ = std::max(packed_pages(length_ + tokens, sinks_, window_), pages_.count());
  pages_.reserve(target_pages_, blocks);
  first_ = needed_first();
  make_tail_room(blocks);
  before_ = {length_, first_, pages_.count()};
}

void LayerStore::make_tail_room(BlockSource& blocks) {
  const std::int64_t rows = tail_rows(first_, chunk_tokens_);
  if (rows > tail_.capacity()) {
    move_tail(RowBlock(blocks.take(), tail_capacity(rows), kv_heads_, format_->head_dim()));
  } else if (tail_row(first_) + rows > tail_.capacity()) {
    move_tail(tail_);
  }
}

void LayerStore::move_tail(RowBlock target) {
  target.copy_rows(tail_, tail_row(first_), 0, length_ - first_);
  tail_ = std::move(target);
  tail_origin_ = first_;
}

std::int64_t LayerStore::smaller_tail_bytes() const {
  const std::int64_t capacity = tail_capacity(tail_rows(first_, chunk_tokens_));
  return tail_.capacity() > 2 * capacity ? block_bytes(capacity) : 0;
}

void LayerStore::shrink_tail(std::shared_ptr<PoolBlock> block) {
  const std::int64_t capacity = tail_capacity(tail_rows(first_, chunk_tokens_));
  move_tail(RowBlock(std::move(block), capacity, kv_heads_, format_->head_dim()));
}

void LayerStore::abort_chunk() {
  chunk_tokens_ = 0;
  length_ = before_.length;
  first_ = before_.first;
  pages_.keep(before_.pages);
}

Half* LayerStore::row(int head, std::int64_t position, bool is_key) const {
  const bool sink = position < sinks_;
  const RowBlock& rows = sink ? sink_rows_ : tail_;
  const std::int64_t index = sink ? position : tail_row(position);
  return is_key ? rows.key(head, index) : rows.value(head, index);
}

bool LayerStore::write_tensor(const float* rows, int head, bool is_key) {
  const int head_dim = format_->head_dim();
  bool finite = true;
  for (std::int64_t token = 0; token < chunk_tokens_; ++token) {
    Half* target = row(head, length_ + token, is_key);
    to_half(rows + (token * kv_heads_ + head) * head_dim, target,
            static_cast<std::size_t>(head_dim));
    finite &= all_finite(target, head_dim);
  }
  return finite;
}

bool LayerStore::write_rows(int head, const float* key, const float* value) {
  const bool finite_key = write_tensor(key, head, true);
  const bool finite_value = write_tensor(value, head, false);
  return finite_key && finite_value;
}

void LayerStore::pack(std::int64_t page, int head, Isa isa) {
  const std::int64_t index = pages_.count() + page;
  const std::int64_t start = page_start(index);
  pack_page(*format_, row(head, start, true), row(head, start, false), pages_.slot(index, head),
            isa);
}

void LayerStore::finish_chunk() {
  pages_.publish(target_pages_);
  first_ = needed_first();  // of the chunk's first token: length_ still is its position
  length_ += chunk_tokens_;
  chunk_tokens_ = 0;
}

Error LayerStore::describe_bad_number(int layer, int head, const float* key,
                                      const float* value) const {
  const int head_dim = format_->head_dim();
  for (const bool is_key : {true, false}) {
    const float* rows = is_key ? key : value;
    for (std::int64_t token = 0; token < chunk_tokens_; ++token) {
      for (int channel = 0; channel < head_dim; ++channel) {
        const float number = rows[(token * kv_heads_ + head) * head_dim + channel];
        if (std::isfinite(to_float(to_half(number)))) continue;
        const std::string found =
            std::isnan(number) ? "nan" : fmt::format("{}", number);  // without the sign of a NaN
        return {fmt::format(
            "layer {}, kv head {}, token {}: {} channel {} is {}, expected a finite number within "
            "+-{}",
            layer, head, length_ + token, is_key ? "key" : "value", channel, found, kHalfMax)};
      }
    }
  }
  return {
      fmt::format("layer {}, kv head {}: the rows changed while they were appended", layer, head)};
}

void LayerStore::list_fork_blocks(std::vector<std::int64_t>& sizes) const {
  if (!sink_rows_.empty()) sizes.push_back(block_bytes(sinks_));
  pages_.list_shared_blocks(sizes);
  if (!tail_.empty()) sizes.push_back(block_bytes(tail_capacity(tail_rows(first_, 0))));
}

LayerStore LayerStore::fork(BlockSource& blocks) const {
  LayerStore copy = *this;
  const int head_dim = format_->head_dim();
  if (!sink_rows_.empty()) {
    copy.sink_rows_ = RowBlock(blocks.take(), sinks_, kv_heads_, head_dim);
    copy.sink_rows_.copy_rows(sink_rows_, 0, 0, std::min<std::int64_t>(sinks_, length_));
  }
  copy.pages_ = pages_.share(blocks);
  if (!tail_.empty()) {
    copy.move_tail(
        RowBlock(blocks.take(), tail_capacity(tail_rows(first_, 0)), kv_heads_, head_dim));
  }
  return copy;
}

void LayerStore::truncate(std::int64_t length) {
  // Pages that the tail's rows can stand in for are dropped as far as P(length - 1) allows.
  const std::int64_t held_from = (first_ - sinks_) / kPageTokens;
  const std::int64_t wanted = packed_pages(length, sinks_, window_);
  const std::int64_t kept = std::min(pages_.count(), std::max(wanted, held_from));
  const std::int64_t whole = std::max<std::int64_t>(length - sinks_, 0) / kPageTokens;
  if (kept > whole) {  // the cut goes through or before a page whose rows are gone
    first_ = page_start(whole);
    tail_origin_ = first_;
    unpack_into_tail(whole, length - first_);
  }
  pages_.keep(std::min(kept, whole));
  length_ = length;
}

// A tail that has ever been used has room for a page.
void LayerStore::unpack_into_tail(std::int64_t page, std::int64_t tokens) {
  if (tokens <= 0) return;
  const auto head_dim = static_cast<std::size_t>(format_->head_dim());
  const std::size_t count = static_cast<std::size_t>(tokens) * head_dim;
  std::vector<float> key(kPageTokens * head_dim);
  std::vector<float> value(kPageTokens * head_dim);
  for (int head = 0; head < kv_heads_; ++head) {
    unpack_page(*format_, pages_.slot(page, head), key.data(), value.data());
    for (auto* rows : {&key, &value}) {
      for (float& number : *rows) number = std::clamp(number, -kHalfMax, kHalfMax);
    }
    to_half(key.data(), tail_.key(head, 0), count);
    to_half(value.data(), tail_.value(head, 0), count);
  }
}

}  // namespace kvq
