#include "kvq/cache/host_sequence.h"

#include <utility>

namespace kvq {

HostSequence::HostSequence(std::shared_ptr<const CacheSpec> spec, std::shared_ptr<PagePool> pool,
                           Isa isa)
    : spec_(std::move(spec)), pool_(std::move(pool)), isa_(isa) {
  std::vector<PageFormat> formats;
  for (const LayerSpec& layer : spec_->layers) {
    formats.push_back(PageFormat::create(layer, spec_->head_dim).value());
  }
  formats_ = std::make_shared<const std::vector<PageFormat>>(std::move(formats));
  reset();
}

Status HostSequence::begin_chunk(int tokens) {
  if (tokens < 1) return fail("begin_chunk: expected at least one token, found {}", tokens);
  if (chunk_tokens_ > 0) return fail("begin_chunk: a chunk is open already");
  block_sizes_.clear();
  for (LayerStore& layer : layers_) layer.list_chunk_blocks(tokens, block_sizes_);
  auto allocated = pool_->allocate_all(block_sizes_);
  if (!allocated) {
    return fail("no room for {} tokens behind token {}: {}", tokens, length_,
                allocated.error().message);
  }
  BlockSource blocks(*std::move(allocated));
  for (LayerStore& layer : layers_) layer.begin_chunk(tokens, blocks);
  // Giving memory back needs a little first: where there is none, the tail stays as it is.
  for (LayerStore& layer : layers_) {
    const std::int64_t bytes = layer.smaller_tail_bytes();
    if (bytes == 0) continue;
    if (auto block = pool_->allocate(bytes)) layer.shrink_tail(*std::move(block));
  }
  chunk_tokens_ = tokens;
  layers_appended_ = 0;
  return {};
}

void HostSequence::abort_chunk() {
  if (chunk_tokens_ == 0) return;
  for (LayerStore& layer : layers_) layer.abort_chunk();
  chunk_tokens_ = 0;
}

LayerView HostSequence::view(int index) const { return layer(index).view(); }

Result<std::unique_ptr<SequenceState>> HostSequence::fork() const {
  if (chunk_tokens_ > 0) return fail("fork: a chunk is open");
  std::vector<std::int64_t> sizes;
  for (const LayerStore& layer : layers_) layer.list_fork_blocks(sizes);
  auto allocated = pool_->allocate_all(sizes);
  if (!allocated) {
    return fail("no room for a fork of {} tokens: {}", length_, allocated.error().message);
  }
  BlockSource blocks(*std::move(allocated));
  auto copy = std::make_unique<HostSequence>(*this);
  copy->layers_.clear();
  for (const LayerStore& layer : layers_) copy->layers_.push_back(layer.fork(blocks));
  return copy;
}

Status HostSequence::truncate(std::int64_t length) {
  if (chunk_tokens_ > 0) return fail("truncate: a chunk is open");
  if (length < 0 || length > length_) {
    return fail("truncate: expected a length from 0 to {}, found {}", length_, length);
  }
  for (LayerStore& layer : layers_) layer.truncate(length);
  length_ = length;
  return {};
}

void HostSequence::reset() {
  layers_.clear();
  for (const PageFormat& format : *formats_) layers_.emplace_back(format, *spec_);
  length_ = 0;
  chunk_tokens_ = 0;
}

ByteCount HostSequence::bytes(int index) const { return layer(index).bytes(); }

}  // namespace kvq
