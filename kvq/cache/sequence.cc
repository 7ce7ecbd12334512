#include "kvq/cache/sequence.h"

#include <optional>
#include <utility>

#include "kvq/cache/sequence_state.h"

namespace kvq {

Sequence::Sequence(std::unique_ptr<State> state) : state_(std::move(state)) {}
Sequence::Sequence(Sequence&&) noexcept = default;
Sequence& Sequence::operator=(Sequence&&) noexcept = default;
Sequence::~Sequence() = default;

Result<Sequence> Sequence::create(std::shared_ptr<const CacheSpec> spec,
                                  std::shared_ptr<PagePool> pool, Isa isa) {
  KVQ_RETURN_IF_ERROR(validate(*spec));
  std::vector<PageFormat> formats;
  for (const LayerSpec& layer : spec->layers) {
    KVQ_ASSIGN_OR_RETURN(formats.emplace_back(), PageFormat::create(layer, spec->head_dim));
  }
  auto state = std::make_unique<State>();
  state->spec = std::move(spec);
  state->pool = std::move(pool);
  state->isa = isa;
  state->formats = std::make_shared<const std::vector<PageFormat>>(std::move(formats));
  Sequence sequence(std::move(state));
  sequence.reset();
  return sequence;
}

std::int64_t Sequence::length() const { return state_->length; }
const CacheSpec& Sequence::spec() const { return *state_->spec; }

Status Sequence::begin_chunk(int tokens) {
  State& state = *state_;
  if (tokens < 1) return fail("begin_chunk: expected at least one token, found {}", tokens);
  if (state.chunk_tokens > 0) return fail("begin_chunk: a chunk is open already");
  state.block_sizes.clear();
  for (LayerStore& layer : state.layers) layer.list_chunk_blocks(tokens, state.block_sizes);
  auto allocated = state.pool->allocate_all(state.block_sizes);
  if (!allocated) {
    return fail("no room for {} tokens behind token {}: {}", tokens, state.length,
                allocated.error().message);
  }
  BlockSource blocks(*std::move(allocated));
  for (LayerStore& layer : state.layers) layer.begin_chunk(tokens, blocks);
  // Giving memory back needs a little first: where there is none, the tail stays as it is.
  for (LayerStore& layer : state.layers) {
    const std::int64_t bytes = layer.smaller_tail_bytes();
    if (bytes == 0) continue;
    if (auto block = state.pool->allocate(bytes)) layer.shrink_tail(*std::move(block));
  }
  state.chunk_tokens = tokens;
  state.layers_appended = 0;
  return {};
}

void Sequence::abort_chunk() {
  if (state_->chunk_tokens == 0) return;
  for (LayerStore& layer : state_->layers) layer.abort_chunk();
  state_->chunk_tokens = 0;
}

LayerView Sequence::view(int layer) const {
  return state_->layers[static_cast<std::size_t>(layer)].view();
}

Result<Sequence> Sequence::fork() const {
  if (state_->chunk_tokens > 0) return fail("fork: a chunk is open");
  std::vector<std::int64_t> sizes;
  for (const LayerStore& layer : state_->layers) layer.list_fork_blocks(sizes);
  auto allocated = state_->pool->allocate_all(sizes);
  if (!allocated) {
    return fail("no room for a fork of {} tokens: {}", state_->length, allocated.error().message);
  }
  BlockSource blocks(*std::move(allocated));
  auto copy = std::make_unique<State>();
  copy->spec = state_->spec;
  copy->pool = state_->pool;
  copy->isa = state_->isa;
  copy->formats = state_->formats;
  copy->length = state_->length;
  copy->layers.reserve(state_->layers.size());
  for (const LayerStore& layer : state_->layers) copy->layers.push_back(layer.fork(blocks));
  return Sequence(std::move(copy));
}

Status Sequence::truncate(std::int64_t length) {
  if (state_->chunk_tokens > 0) return fail("truncate: a chunk is open");
  if (length < 0 || length > state_->length) {
    return fail("truncate: expected a length from 0 to {}, found {}", state_->length, length);
  }
  for (LayerStore& layer : state_->layers) layer.truncate(length);
  state_->length = length;
  return {};
}

void Sequence::reset() {
  state_->layers.clear();
  for (const PageFormat& format : *state_->formats) {
    state_->layers.emplace_back(format, *state_->spec);
  }
  state_->length = 0;
  state_->chunk_tokens = 0;
}

ByteCount Sequence::bytes(int layer) const {
  return state_->layers[static_cast<std::size_t>(layer)].bytes();
}

ByteCount Sequence::bytes() const {
  ByteCount sum;
  for (const LayerStore& layer : state_->layers) {
    const ByteCount bytes = layer.bytes();
    sum.pages += bytes.pages;
    sum.exact += bytes.exact;
    sum.allocated += bytes.allocated;
  }
  return sum;
}

Status reorder(std::vector<Sequence>& sequences, std::span<const int> source) {
  const std::size_t count = sequences.size();
  if (source.size() != count) {
    return fail("reorder: expected {} sources, found {}", count, source.size());
  }
  // taker[j]: the first of those that want sequence j; it gets the sequence itself.
  std::vector<std::size_t> taker(count, count);
  for (std::size_t i = 0; i < count; ++i) {
    if (source[i] < 0 || static_cast<std::size_t>(source[i]) >= count) {
      return fail("reorder: expected a source from 0 to {}, found {}", count - 1, source[i]);
    }
    const auto from = static_cast<std::size_t>(source[i]);
    if (taker[from] == count) taker[from] = i;
  }
  std::vector<std::optional<Sequence>> forks(count);
  for (std::size_t i = 0; i < count; ++i) {
    const auto from = static_cast<std::size_t>(source[i]);
    if (taker[from] != i) {
      KVQ_ASSIGN_OR_RETURN(forks[i], sequences[from].fork());
    }
  }
  std::vector<Sequence> ordered;
  ordered.reserve(count);
  for (std::size_t i = 0; i < count; ++i) {
    const auto from = static_cast<std::size_t>(source[i]);
    ordered.push_back(std::move(taker[from] == i ? sequences[from] : *forks[i]));
  }
  sequences = std::move(ordered);
  return {};
}

}  // namespace kvq
