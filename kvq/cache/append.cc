// Writing the rows of a chunk in two parallel loops: (sequence, kv head) converts rows to fp16,
// (sequence, kv head, page) packs pages.
#include <algorithm>
#include <atomic>
#include <vector>

#include "kvq/cache/host_sequence.h"

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

// What is wrong with the rows of kv head `head`, counted through all items.
Error bad_number(std::span<const AppendItem> items, const LayerStore& store, int layer, int head) {
  const int kv_heads = items.front().sequence->spec().kv_heads;
  const AppendItem& item = items[static_cast<std::size_t>(head / kv_heads)];
  Error error = store.describe_bad_number(layer, head % kv_heads, item.key, item.value);
  if (items.size() > 1) {
    error.message = fmt::format("sequence {}: {}", head / kv_heads, error.message);
  }
  return error;
}

}  // namespace

Status HostSequence::check_append(int index) const {
  const int count = static_cast<int>(layers_.size());
  if (index < 0 || index >= count) {
    return fail("append: expected a layer from 0 to {}, found {}", count - 1, index);
  }
  if (chunk_tokens_ == 0) return fail("append: layer {}: no chunk is open", index);
  if (!layer(index).awaits_chunk()) {
    return fail("append: layer {} holds this chunk already", index);
  }
  return {};
}

void HostSequence::finish_layer(int index) {
  layer(index).finish_chunk();
  if (++layers_appended_ < static_cast<int>(layers_.size())) return;
  length_ += chunk_tokens_;
  chunk_tokens_ = 0;
}

Status HostSequence::append(std::span<const AppendItem> items, int index, ThreadPool* threads) {
  const int kv_heads = spec_->kv_heads;
  std::int64_t numbers = 0;
  std::int64_t pages = 0;  // most pages of one sequence and head
  std::vector<HostSequence*> sequences;
  for (const AppendItem& item : items) {
    auto* sequence = dynamic_cast<HostSequence*>(&item.sequence->state());
    if (sequence == nullptr) return fail("append: expected sequences in host memory");
    KVQ_RETURN_IF_ERROR(sequence->check_append(index));
    if (sequence->spec_->kv_heads != kv_heads) {
      return fail("append: expected sequences of {} kv heads, found one of {}", kv_heads,
                  sequence->spec_->kv_heads);
    }
    numbers += std::int64_t{2} * sequence->chunk_tokens_ * kv_heads * sequence->spec_->head_dim;
    pages = std::max(pages, sequence->layer(index).pages_to_pack());
    sequences.push_back(sequence);
  }
  const auto store = [&](int head) -> LayerStore& {
    return sequences[static_cast<std::size_t>(head / kv_heads)]->layer(index);
  };

  const int heads = static_cast<int>(items.size()) * kv_heads;
  std::atomic<int> first_bad{heads};
  run(numbers < kSerialNumbers ? nullptr : threads, heads, [&](int task, int) {
    const AppendItem& item = items[static_cast<std::size_t>(task / kv_heads)];
    if (!store(task).write_rows(task % kv_heads, item.key, item.value)) lower(first_bad, task);
  });
  if (first_bad < heads) {
    return tl::unexpected(bad_number(items, store(first_bad), index, first_bad));
  }

  run(threads, heads * static_cast<int>(pages), [&](int task, int) {
    const int page = task / heads;
    const int head = task % heads;
    if (page >= store(head).pages_to_pack()) return;
    store(head).pack(page, head % kv_heads,
                     sequences[static_cast<std::size_t>(head / kv_heads)]->isa_);
  });
  for (HostSequence* sequence : sequences) sequence->finish_layer(index);
  return {};
}

}  // namespace kvq
