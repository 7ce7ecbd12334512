// Writing the rows of a chunk: tasks are (sequence, kv head), each converts its rows to fp16 and
// packs its pages.
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

Status Sequence::State::append(std::span<const AppendItem> items, int layer, ThreadPool* threads) {
  if (items.empty()) return {};
  const int kv_heads = items.front().sequence->spec().kv_heads;
  const auto index = static_cast<std::size_t>(layer);
  bool serial = threads == nullptr || threads->size() == 1;
  std::int64_t numbers = 0;
  for (const AppendItem& item : items) {
    const State& state = *item.sequence->state_;
    KVQ_RETURN_IF_ERROR(state.check_append(layer));
    if (state.spec->kv_heads != kv_heads) {
      return fail("append: expected sequences of {} kv heads, found one of {}", kv_heads,
                  state.spec->kv_heads);
    }
    numbers += std::int64_t{2} * state.chunk_tokens * kv_heads * state.spec->head_dim;
    if (state.layers[index].packs_pages()) numbers += kSerialNumbers;
  }
  serial = serial || numbers < kSerialNumbers;

  const int tasks = static_cast<int>(items.size()) * kv_heads;
  std::atomic<int> first_bad{tasks};
  const auto write = [&](int task, int) {
    const AppendItem& item = items[static_cast<std::size_t>(task / kv_heads)];
    State& state = *item.sequence->state_;
    if (!state.layers[index].write_head(task % kv_heads, item.key, item.value, state.isa)) {
      lower(first_bad, task);
    }
  };
  if (serial) {
    for (int task = 0; task < tasks; ++task) write(task, 0);
  } else {
    threads->run(tasks, write);
  }

  if (const int bad = first_bad.load(); bad < tasks) {
    const int number = bad / kv_heads;
    const AppendItem& item = items[static_cast<std::size_t>(number)];
    Error error = item.sequence->state_->layers[index].describe_bad_number(layer, bad % kv_heads,
                                                                           item.key, item.value);
    if (items.size() > 1) error.message = fmt::format("sequence {}: {}", number, error.message);
    return tl::unexpected(std::move(error));
  }
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
