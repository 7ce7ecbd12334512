#include "python/bindings/layer_cache.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "kvq/attention/boundary.h"
#include "kvq/codec/pack.h"
#include "python/bindings/workers.h"

namespace kvq::python {

LayerCache::LayerCache(std::shared_ptr<const CacheSpec> spec, bool exact_prefill, Isa isa)
    : spec_(std::move(spec)),
      pool_(PagePool::create(0)),
      exact_prefill_(exact_prefill),
      isa_(isa) {}

Result<LayerCache> LayerCache::create(const LayerSpec& spec, int kv_heads, int head_dim,
                                      const LayerCacheOptions& options) {
  CacheSpec cache = CacheSpec::uniform(spec, 1, kv_heads, head_dim);
  cache.sinks = options.sinks;
  cache.window = options.window;
  KVQ_RETURN_IF_ERROR(validate(cache));
  KVQ_ASSIGN_OR_RETURN(const Isa isa, default_isa());
  return LayerCache(std::make_shared<const CacheSpec>(std::move(cache)), options.exact_prefill,
                    isa);
}

std::vector<std::int64_t> LayerCache::lengths() const {
  std::vector<std::int64_t> lengths;
  for (const Sequence& sequence : sequences_) lengths.push_back(sequence.length());
  return lengths;
}

ByteCount LayerCache::bytes() const {
  ByteCount sum;
  for (const Sequence& sequence : sequences_) {
    const ByteCount bytes = sequence.bytes();
    sum.pages += bytes.pages;
    sum.exact += bytes.exact;
    sum.allocated += bytes.allocated;
  }
  return sum;
}

Status LayerCache::add_sequences(int count) {
  for (int i = 0; i < count; ++i) {
    KVQ_ASSIGN_OR_RETURN(Sequence sequence, Sequence::create(spec_, pool_, isa_));
    sequences_.push_back(std::move(sequence));
  }
  return {};
}

Status LayerCache::check(const Rows& rows, const char* name) const {
  if (!sequences_.empty() && rows.batch != batch()) {
    return fail("{}: expected a batch of {} sequences as the cache holds, found {}", name, batch(),
                rows.batch);
  }
  if (rows.head_dim != spec_->head_dim) {
    return fail("{}: expected heads of {} numbers, found {}", name, spec_->head_dim, rows.head_dim);
  }
  if (rows.batch < 1 || rows.tokens < 1) {
    return fail("{}: expected at least one sequence and one token, found {} and {}", name,
                rows.batch, rows.tokens);
  }
  return {};
}

Status LayerCache::append(const Rows& key, const Rows& value, const KeptTokens& kept) {
  for (const auto& [rows, name] : {std::pair(&key, "key"), std::pair(&value, "value")}) {
    KVQ_RETURN_IF_ERROR(check(*rows, name));
    if (rows->heads != spec_->kv_heads) {
      return fail("{}: expected {} kv heads, found {}", name, spec_->kv_heads, rows->heads);
    }
  }
  if (key.batch != value.batch || key.tokens != value.tokens) {
    return fail("value: expected {} sequences of {} tokens as key has, found {} of {}", key.batch,
                key.tokens, value.batch, value.tokens);
  }
  const bool first = sequences_.empty();
  if (first) KVQ_RETURN_IF_ERROR(add_sequences(key.batch));
  Status appended = append_kept(key, value, kept);
  if (appended) return {};
  for (Sequence& sequence : sequences_) sequence.abort_chunk();
  if (first) sequences_.clear();
  return appended;
}

Status LayerCache::append_kept(const Rows& key, const Rows& value, const KeptTokens& kept) {
  const std::size_t width =
      static_cast<std::size_t>(spec_->kv_heads) * static_cast<std::size_t>(spec_->head_dim);
  std::vector<int> counts;
  std::size_t rows = 0;
  for (int i = 0; i < batch(); ++i) {
    counts.push_back(kept.count(i, key.tokens));
    rows += static_cast<std::size_t>(counts.back());
  }
  const auto keys = std::make_unique_for_overwrite<float[]>(rows * width);
  const auto values = std::make_unique_for_overwrite<float[]>(rows * width);
  std::vector<AppendItem> items;
  std::size_t row = 0;
  for (int i = 0; i < batch(); ++i) {
    const int count = counts[static_cast<std::size_t>(i)];
    if (count == 0) continue;
    Sequence& sequence = sequences_[static_cast<std::size_t>(i)];
    KVQ_RETURN_IF_ERROR(sequence.begin_chunk(count));
    gather(key, i, kept, keys.get() + row * width);
    gather(value, i, kept, values.get() + row * width);
    items.push_back({&sequence, keys.get() + row * width, values.get() + row * width});
    row += static_cast<std::size_t>(count);
  }
  Workers& workers = Workers::instance();
  const auto held = workers.lock();
  return kvq::append(items, 0, workers.threads());
}

Status LayerCache::attend(const Rows& query, const KeptTokens& kept, float scale,
                          const Rows& output) const {
  KVQ_RETURN_IF_ERROR(check(query, "query"));
  if (query.batch != batch() || output.batch != batch() || output.heads != query.heads ||
      output.tokens != query.tokens || output.head_dim != query.head_dim) {
    return fail("output: expected the query's shape, of a batch of {}", batch());
  }
  const std::size_t width =
      static_cast<std::size_t>(query.heads) * static_cast<std::size_t>(query.head_dim);
  const std::size_t numbers =
      static_cast<std::size_t>(batch()) * static_cast<std::size_t>(query.tokens) * width;
  const auto queries = std::make_unique_for_overwrite<float[]>(numbers);
  const auto outputs = std::make_unique_for_overwrite<float[]>(numbers);
  std::vector<LayerView> views;
  for (const Sequence& sequence : sequences_) views.push_back(sequence.view(0));
  std::vector<AttentionItem> items;
  std::vector<std::size_t> offsets;
  std::size_t offset = 0;
  for (int i = 0; i < batch(); ++i) {
    offsets.push_back(offset);
    const int tokens = kept.count(i, query.tokens);
    if (tokens == 0) continue;
    gather(query, i, kept, queries.get() + offset);
    items.push_back({&views[static_cast<std::size_t>(i)], queries.get() + offset,
                     outputs.get() + offset, tokens});
    offset += static_cast<std::size_t>(tokens) * width;
  }
  {
    Workers& workers = Workers::instance();
    const auto held = workers.lock();
    const AttentionShape shape{query.heads, spec_->kv_heads, spec_->head_dim, scale};
    KVQ_ASSIGN_OR_RETURN(Attention * attention, workers.attention(shape, exact_prefill_));
    KVQ_RETURN_IF_ERROR(attention->run(items, workers.threads()));
  }
  for (int i = 0; i < batch(); ++i) {
    scatter(outputs.get() + offsets[static_cast<std::size_t>(i)], i, kept, output);
  }
  return {};
}

// Positions [0, sinks), pages up to the newest query's boundary, then the tail.
void LayerCache::read_head(int sequence, int head, const Rows& key, const Rows& value) const {
  const LayerView view = sequences_[static_cast<std::size_t>(sequence)].view(0);
  if (view.length == 0) return;
  const auto head_dim = static_cast<std::size_t>(spec_->head_dim);
  std::vector<float> keys(kPageTokens * head_dim);
  std::vector<float> values(kPageTokens * head_dim);
  const auto copy_exact = [&](const ExactRows& rows, std::int64_t from, std::int64_t to) {
    for (std::int64_t position = from; position < to; ++position) {
      const std::ptrdiff_t offset =
          head * rows.head_stride + (position - rows.first) * spec_->head_dim;
      to_float(rows.key + offset, keys.data(), head_dim);
      to_float(rows.value + offset, values.data(), head_dim);
      write_row(keys.data(), key, sequence, head, static_cast<int>(position));
      write_row(values.data(), value, sequence, head, static_cast<int>(position));
    }
  };
  copy_exact(view.sinks, 0, view.sinks.count);
  if (view.length <= view.sink_tokens) return;
  const std::int64_t boundary = query_boundary(view, view.length - 1, false);
  for (std::int64_t start = view.sink_tokens; start < boundary; start += kPageTokens) {
    const PageRef& page =
        view.pages[static_cast<std::size_t>((start - view.sink_tokens) / kPageTokens)];
    unpack_page(*view.format, page.data + head * page.head_stride, keys.data(), values.data());
    for (int token = 0; token < kPageTokens; ++token) {
      const std::ptrdiff_t row = token * static_cast<std::ptrdiff_t>(head_dim);
      write_row(keys.data() + row, key, sequence, head, static_cast<int>(start) + token);
      write_row(values.data() + row, value, sequence, head, static_cast<int>(start) + token);
    }
  }
  copy_exact(view.tail, boundary, view.length);
}

Status LayerCache::read(const Rows& key, const Rows& value) const {
  const auto all = lengths();
  const std::int64_t longest = all.empty() ? 0 : *std::ranges::max_element(all);
  for (const Rows* rows : {&key, &value}) {
    if (rows->batch != batch() || rows->heads != spec_->kv_heads || rows->tokens != longest ||
        rows->head_dim != spec_->head_dim) {
      return fail("read: expected the shape [{}, {}, {}, {}], found [{}, {}, {}, {}]", batch(),
                  spec_->kv_heads, longest, spec_->head_dim, rows->batch, rows->heads, rows->tokens,
                  rows->head_dim);
    }
  }
  Workers& workers = Workers::instance();
  const auto held = workers.lock();
  workers.threads().run(batch() * spec_->kv_heads, [&](int task, int) {
    read_head(task / spec_->kv_heads, task % spec_->kv_heads, key, value);
  });
  return {};
}

Result<LayerCache> LayerCache::select(std::span<const int> source) const {
  LayerCache copy(spec_, exact_prefill_, isa_);
  copy.pool_ = pool_;
  for (const int from : source) {
    if (from < 0 || from >= batch()) {
      return fail("select: expected a sequence from 0 to {}, found {}", batch() - 1, from);
    }
    KVQ_ASSIGN_OR_RETURN(Sequence fork, sequences_[static_cast<std::size_t>(from)].fork());
    copy.sequences_.push_back(std::move(fork));
  }
  return copy;
}

Status LayerCache::reorder(std::span<const int> source) { return kvq::reorder(sequences_, source); }

Status LayerCache::truncate(std::span<const std::int64_t> lengths) {
  if (lengths.size() != sequences_.size()) {
    return fail("truncate: expected {} lengths, found {}", batch(), lengths.size());
  }
  for (std::size_t i = 0; i < sequences_.size(); ++i) {
    if (lengths[i] < 0 || lengths[i] > sequences_[i].length()) {
      return fail("truncate: expected a length from 0 to {}, found {}", sequences_[i].length(),
                  lengths[i]);
    }
  }
  for (std::size_t i = 0; i < sequences_.size(); ++i) {
    KVQ_RETURN_IF_ERROR(sequences_[i].truncate(lengths[i]));
  }
  return {};
}

}  // namespace kvq::python
