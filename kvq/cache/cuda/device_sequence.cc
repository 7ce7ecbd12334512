#include "kvq/cache/cuda/device_sequence.h"

#include <algorithm>
#include <utility>

#include "kvq/cache/view.h"
#include "kvq/codec/pack.h"

namespace kvq::cuda {

DeviceSequence::DeviceSequence(std::shared_ptr<const CacheSpec> spec,
                               std::shared_ptr<const DeviceLayout> layout,
                               std::shared_ptr<PagePool> pool, const DeviceMemory& memory)
    : spec_(std::move(spec)), layout_(std::move(layout)), pool_(std::move(pool)), memory_(memory) {}

std::int64_t DeviceSequence::started_pages(std::int64_t length) const {
  return std::max<std::int64_t>(length - spec_->sinks + kPageTokens - 1, 0) / kPageTokens;
}

std::int64_t DeviceSequence::needed_row_block() const {
  const std::int64_t boundary = packed_boundary(length_, spec_->sinks, spec_->window);
  return std::max(first_row_block_, std::min((boundary - spec_->sinks) / kPageTokens, page_count_));
}

std::int64_t DeviceSequence::pages_read(std::int64_t position) const {
  const std::int64_t boundary = packed_boundary(position, spec_->sinks, spec_->window);
  return std::max((boundary - spec_->sinks) / kPageTokens, first_row_block_);
}

Result<std::shared_ptr<DeviceBlock>> DeviceSequence::allocate(std::int64_t bytes) const {
  return memory_.arena->allocate(bytes, pool_);
}

Result<std::shared_ptr<DeviceBlock>> DeviceSequence::copy_of(const DeviceBlock& block) const {
  KVQ_ASSIGN_OR_RETURN(auto copy, allocate(block.bytes()));
  KVQ_RETURN_IF_ERROR(
      check(cudaMemcpyAsync(copy->data(), block.data(), static_cast<std::size_t>(block.bytes()),
                            cudaMemcpyDeviceToDevice, memory_.device->stream()),
            "copy of exact rows"));
  return copy;
}

// New blocks for `tokens` more tokens: pages, rows behind those that are there, and copies of what
// must be written but is shared: the last row block goes first into `rows`.
Status DeviceSequence::take_memory(int tokens, Blocks& pages, Blocks& rows,
                                   std::shared_ptr<DeviceBlock>& sinks) {
  const std::int64_t end = length_ + tokens;
  if (length_ < spec_->sinks) {
    if (sinks_ == nullptr) {
      KVQ_ASSIGN_OR_RETURN(sinks, allocate(layout_->sink_block_bytes()));
    } else if (sinks_.use_count() > 1) {
      KVQ_ASSIGN_OR_RETURN(sinks, copy_of(*sinks_));
    }
  }
  const std::int64_t target = kvq::packed_pages(end, spec_->sinks, spec_->window) - page_count_;
  while (static_cast<std::int64_t>(pages.size()) < target) {
    KVQ_ASSIGN_OR_RETURN(pages.emplace_back(), allocate(layout_->page_block_bytes()));
  }
  const bool open = length_ > spec_->sinks && (length_ - spec_->sinks) % kPageTokens != 0;
  if (open && rows_.back().use_count() > 1) {
    KVQ_ASSIGN_OR_RETURN(rows.emplace_back(), copy_of(*rows_.back()));
  }
  for (std::int64_t page = started_pages(length_); page < started_pages(end); ++page) {
    KVQ_ASSIGN_OR_RETURN(rows.emplace_back(), allocate(layout_->row_block_bytes()));
  }
  return {};
}

Status DeviceSequence::begin_chunk(int tokens) {
  if (tokens < 1) return fail("begin_chunk: expected at least one token, found {}", tokens);
  if (chunk_tokens_ > 0) return fail("begin_chunk: a chunk is open already");
  Blocks pages;
  Blocks rows;
  std::shared_ptr<DeviceBlock> sinks;
  if (const Status status = take_memory(tokens, pages, rows, sinks); !status) {
    return fail("no room for {} tokens behind token {}: {}", tokens, length_,
                status.error().message);
  }
  if (sinks != nullptr) sinks_ = std::move(sinks);
  for (const auto& page : pages) page_blocks_.push_back(page->index());
  std::ranges::move(pages, std::back_inserter(pages_));
  const std::int64_t added = started_pages(length_ + tokens) - started_pages(length_);
  if (static_cast<std::int64_t>(rows.size()) > added) rows_.pop_back();  // its copy comes first
  std::ranges::move(rows, std::back_inserter(rows_));
  drop_rows(needed_row_block());
  chunk_tokens_ = tokens;
  return {};
}

void DeviceSequence::keep_pages(std::int64_t count) {
  pages_.resize(static_cast<std::size_t>(count));
  page_blocks_.resize(static_cast<std::size_t>(count));
}

void DeviceSequence::drop_rows(std::int64_t first) {
  rows_.erase(rows_.begin(), rows_.begin() + (first - first_row_block_));
  first_row_block_ = first;
}

void DeviceSequence::abort_chunk() {
  if (chunk_tokens_ == 0) return;
  keep_pages(page_count_);
  rows_.resize(static_cast<std::size_t>(
      std::max<std::int64_t>(started_pages(length_) - first_row_block_, 0)));
  chunk_tokens_ = 0;
}

void DeviceSequence::finish_chunk() {
  page_count_ = target_pages();
  drop_rows(needed_row_block());  // of the chunk's first token: length_ still is its position
  length_ += chunk_tokens_;
  chunk_tokens_ = 0;
}

Status DeviceSequence::reopen_chunk(int tokens) {
  if (chunk_tokens_ > 0) return fail("reopen_chunk: a chunk is open already");
  if (tokens < 1 || tokens > length_) {
    return fail("reopen_chunk: expected 1 to {} tokens, found {}", length_, tokens);
  }
  if (first_row_block_ > 0 && length_ - tokens + 1 < page_start(first_row_block_)) {
    return fail("attention of the newest {} tokens: only the newest {} are held exactly", tokens,
                length_ - page_start(first_row_block_) + 1);
  }
  length_ -= tokens;
  chunk_tokens_ = tokens;
  return {};
}

Status DeviceSequence::append(std::span<const AppendItem> /*items*/, int layer,
                              ThreadPool* /*threads*/) {
  return fail("append: layer {}: expected a sequence in host memory, found one on a device", layer);
}

LayerView DeviceSequence::view(int /*layer*/) const { return {}; }

Result<std::unique_ptr<SequenceState>> DeviceSequence::fork() const {
  if (chunk_tokens_ > 0) return fail("fork: a chunk is open");
  return std::make_unique<DeviceSequence>(*this);
}

Status DeviceSequence::truncate(std::int64_t length) {
  if (chunk_tokens_ > 0) return fail("truncate: a chunk is open");
  if (length < 0 || length > length_) {
    return fail("truncate: expected a length from 0 to {}, found {}", length_, length);
  }
  // Pages that exact rows can stand in for are dropped as far as P(length - 1) allows.
  const std::int64_t wanted = kvq::packed_pages(length, spec_->sinks, spec_->window);
  const std::int64_t kept = std::min(page_count_, std::max(wanted, first_row_block_));
  const std::int64_t whole = std::max<std::int64_t>(length - spec_->sinks, 0) / kPageTokens;
  if (kept > whole) {  // the cut goes through or before a page whose rows are gone
    Blocks rows;
    if (const std::int64_t tokens = length - page_start(whole); tokens > 0) {
      KVQ_ASSIGN_OR_RETURN(rows.emplace_back(), allocate(layout_->row_block_bytes()));
      KVQ_RETURN_IF_ERROR(unpack(*pages_[static_cast<std::size_t>(whole)], tokens, *rows.back()));
    }
    rows_ = std::move(rows);
    first_row_block_ = whole;
  }
  page_count_ = std::min(kept, whole);
  keep_pages(page_count_);
  rows_.resize(static_cast<std::size_t>(
      std::max<std::int64_t>(started_pages(length) - first_row_block_, 0)));
  length_ = length;
  return {};
}

Status DeviceSequence::unpack(const DeviceBlock& page, std::int64_t tokens,
                              const DeviceBlock& rows) const {
  const DeviceLayout& layout = *layout_;
  std::vector<std::byte> packed(static_cast<std::size_t>(layout.page_block_bytes()));
  std::vector<Half> exact(static_cast<std::size_t>(layout.row_block_bytes()) / sizeof(Half));
  cudaStream_t stream = memory_.device->stream();
  KVQ_RETURN_IF_ERROR(check(
      cudaMemcpyAsync(packed.data(), page.data(), packed.size(), cudaMemcpyDeviceToHost, stream),
      "a packed page"));
  KVQ_RETURN_IF_ERROR(memory_.device->synchronize());
  const auto head_dim = static_cast<std::size_t>(layout.head_dim());
  std::vector<float> values[2] = {std::vector<float>(kPageTokens * head_dim),
                                  std::vector<float>(kPageTokens * head_dim)};
  for (int layer = 0; layer < layout.layers(); ++layer) {
    const PageFormat& format = layout.format(layer);
    Half* target = exact.data() + layout.row_offset(layer) / static_cast<int>(sizeof(Half));
    for (int head = 0; head < layout.kv_heads(); ++head) {
      const std::byte* source = packed.data() + layout.page_offset(layer) +
                                head * static_cast<std::int64_t>(format.page_bytes);
      unpack_page(format, source, values[0].data(), values[1].data());
      for (int kind = 0; kind < 2; ++kind) {
        for (float& number : values[kind]) number = std::clamp(number, -kHalfMax, kHalfMax);
        to_half(values[kind].data(),
                target + kind * layout.value_offset(kPageTokens) +
                    head * layout.head_stride(kPageTokens),
                static_cast<std::size_t>(tokens) * head_dim);
      }
    }
  }
  KVQ_RETURN_IF_ERROR(check(cudaMemcpyAsync(rows.data(), exact.data(), exact.size() * sizeof(Half),
                                            cudaMemcpyHostToDevice, stream),
                            "exact rows"));
  return memory_.device->synchronize();
}

void DeviceSequence::reset() {
  keep_pages(0);
  rows_.clear();
  sinks_.reset();
  length_ = 0;
  page_count_ = 0;
  first_row_block_ = 0;
  chunk_tokens_ = 0;
}

ByteCount DeviceSequence::bytes(int layer) const {
  const std::int64_t page_bytes = layout_->page_offset(layer + 1) - layout_->page_offset(layer);
  const auto rows_bytes = [&](std::int64_t rows) {
    return 2 * layout_->value_offset(1) * rows * static_cast<std::int64_t>(sizeof(Half));
  };
  ByteCount bytes;
  bytes.pages = page_count_ * page_bytes;
  bytes.exact = rows_bytes(length_ - page_count_ * kPageTokens);
  bytes.allocated = static_cast<std::int64_t>(pages_.size()) * page_bytes +
                    rows_bytes(static_cast<std::int64_t>(rows_.size()) * kPageTokens) +
                    rows_bytes(sinks_ != nullptr ? spec_->sinks : 0);
  return bytes;
}

}  // namespace kvq::cuda
