// Writing the rows of a chunk in two parallel loops: (sequence, kv head) converts rows to fp16,
// (sequence, kv head, page) packs pages.
#include <algorithm>
#include <atomic>

#include "kvq/cache/sequence_state.h"

namespace kvq {
namespace {

// Numbers that one thread converts in about the time that it takes to wake another.
constexpr std::int64_t kSerialNumbers = 1 << 15;

void lower(std::atomic<int>& minimum, int value) {
  int seen = minimum.load();
  while (value < seen && !minimum.compare_exchange_weak(seen, value)) {
  }
}

// body(task, worker) for all tasks; without a thread pool in the calling thread.
template <typename Body>
void run(ThreadPool* threads, int tasks, const Body& body) {
  if (threads != nullptr) {
    threads->run(tasks, body);
    return;
  }
  for (int task = 0; task < tasks; ++task) body(task, 0);
}

}  // namespace

Status Sequence::State::check_append(int layer) const {
  const int count = static_cast<int>(layers.size());
  if (layer < 0 || layer >= count) {
    return fail("append: expected a layer from 0 to {}, found {}", count - 1, layer);
  }
  if (chunk_tokens == 0) return fail("append: layer {}: no chunk is open", layer);
  if (!layers[static_cast<std::size_t>(layer)].awaits_chunk()) {
    return fail("append: layer {} holds this chunk already", layer);
  }
  return {};
}

void Sequence::State::finish_layer(int layer) {
  layers[static_cast<std::size_t>(layer)].finish_chunk();
  if (++layers_appended < static_cast<int>(layers.size())) return;
  length += chunk_tokens;
  chunk_tokens = 0;
}

Error Sequence::State::bad_number(std::span<const AppendItem> items, int layer, int head) {
  const int kv_heads = items.front().sequence->spec().kv_heads;
  const AppendItem& item = items[static_cast<std::size_t>(head / kv_heads)];
  const LayerStore& store = item.sequence->state_->layers[static_cast<std::size_t>(layer)];
  Error error = store.describe_bad_number(layer, head % kv_heads, item.key, item.value);
  if (items.size() > 1) {
    error.message = fmt::format("sequence {}: {}", head / kv_heads, error.message);
  }
  return error;
}

Status Sequence::State::append(std::span<const AppendItem> items, int layer, ThreadPool* threads) {
  if (items.empty()) return {};
  const int kv_heads = items.front().sequence->spec().kv_heads;
  const auto index = static_cast<std::size_t>(layer);
  std::int64_t numbers = 0;
  std::int64_t pages = 0;  // most pages of one sequence and head
  for (const AppendItem& item : items) {
    const State& state = *item.sequence->state_;
    KVQ_RETURN_IF_ERROR(state.check_append(layer));
    if (state.spec->kv_heads != kv_heads) {
      return fail("append: expected sequences of {} kv heads, found one of {}", kv_heads,
                  state.spec->kv_heads);
    }
    numbers += std::int64_t{2} * state.chunk_tokens * kv_heads * state.spec->head_dim;
    pages = std::max(pages, state.layers[index].pages_to_pack());
  }

  const int heads = static_cast<int>(items.size()) * kv_heads;
  std::atomic<int> first_bad{heads};
  run(numbers < kSerialNumbers ? nullptr : threads, heads, [&](int task, int) {
    const AppendItem& item = items[static_cast<std::size_t>(task / kv_heads)];
    LayerStore& store = item.sequence->state_->layers[index];
    if (!store.write_rows(task % kv_heads, item.key, item.value)) lower(first_bad, task);
  });
  if (first_bad < heads) return tl::unexpected(bad_number(items, layer, first_bad));

  run(threads, heads * static_cast<int>(pages), [&](int task, int) {
    const int page = task / heads;
    const int item_head = task % heads;
    State& state = *items[static_cast<std::size_t>(item_head / kv_heads)].sequence->state_;
    LayerStore& store = state.layers[index];
    if (page < store.pages_to_pack()) store.pack(page, item_head % kv_heads, state.isa);
  });
  for (const AppendItem& item : items) item.sequence->state_->finish_layer(layer);
  return {};
}

Status Sequence::append(int layer, const float* key, const float* value) {
  const AppendItem item{this, key, value};
  return State::append({&item, 1}, layer, nullptr);
}

Status append(std::span<const AppendItem> items, int layer, ThreadPool& threads) {
  return Sequence::State::append(items, layer, &threads);
}

}  // namespace kvq
