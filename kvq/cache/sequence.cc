#include "kvq/cache/sequence.h"

#include <optional>
#include <utility>

#include "kvq/cache/host_sequence.h"

namespace kvq {

Sequence::Sequence(std::unique_ptr<SequenceState> state) : state_(std::move(state)) {}
Sequence::Sequence(Sequence&&) noexcept = default;
Sequence& Sequence::operator=(Sequence&&) noexcept = default;
Sequence::~Sequence() = default;

Result<Sequence> Sequence::create(std::shared_ptr<const CacheSpec> spec,
                                  std::shared_ptr<PagePool> pool, Isa isa) {
  KVQ_RETURN_IF_ERROR(validate(*spec));
  return Sequence(std::make_unique<HostSequence>(std::move(spec), std::move(pool), isa));
}

std::int64_t Sequence::length() const { return state_->length(); }
const CacheSpec& Sequence::spec() const { return state_->spec(); }
Status Sequence::begin_chunk(int tokens) { return state_->begin_chunk(tokens); }
void Sequence::abort_chunk() { state_->abort_chunk(); }
LayerView Sequence::view(int layer) const { return state_->view(layer); }
Status Sequence::truncate(std::int64_t length) { return state_->truncate(length); }
void Sequence::reset() { state_->reset(); }
ByteCount Sequence::bytes(int layer) const { return state_->bytes(layer); }

Result<Sequence> Sequence::fork() const {
  KVQ_ASSIGN_OR_RETURN(auto copy, state_->fork());
  return Sequence(std::move(copy));
}

ByteCount Sequence::bytes() const {
  ByteCount sum;
  for (int layer = 0; layer < static_cast<int>(spec().layers.size()); ++layer) {
    const ByteCount bytes = state_->bytes(layer);
    sum.pages += bytes.pages;
    sum.exact += bytes.exact;
    sum.allocated += bytes.allocated;
  }
  return sum;
}

Status Sequence::append(int layer, const float* key, const float* value) {
  const AppendItem item{this, key, value};
  return state_->append({&item, 1}, layer, nullptr);
}

Status append(std::span<const AppendItem> items, int layer, ThreadPool& threads) {
  if (items.empty()) return {};
  return items.front().sequence->state().append(items, layer, &threads);
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
