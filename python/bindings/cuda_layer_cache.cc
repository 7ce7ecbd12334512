#include "python/bindings/cuda_layer_cache.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "kvq/runtime/cuda/describe_caches.h"

namespace kvq::python {
namespace {

// Chunks of more tokens than this are prefilled, shorter ones decoded token by token.
constexpr int kMaxDecodeTokens = 8;
// The rows of a chunk of no more tokens stay until the next one: truncation inside it is exact.
constexpr int kKeptTokens = 4 * kPageTokens;

cuda::NumberType type_of(Number number) {
  switch (number) {
    case Number::kFloat16:
      return cuda::NumberType::kFloat16;
    case Number::kBFloat16:
      return cuda::NumberType::kBFloat16;
    case Number::kFloat32:
      break;
  }
  return cuda::NumberType::kFloat32;
}

cuda::RowStrides strides_of(const Rows& rows) {
  return {rows.batch_stride, rows.token_stride, rows.head_stride};
}

}  // namespace

Result<CudaLayerCache> CudaLayerCache::create(std::shared_ptr<CudaMemory> memory,
                                              const LayerSpec& spec, int kv_heads, int head_dim,
                                              const LayerCacheOptions& options) {
  CacheSpec cache_spec = CacheSpec::uniform(spec, 1, kv_heads, head_dim);
  cache_spec.sinks = options.sinks;
  cache_spec.window = options.window;
  KVQ_RETURN_IF_ERROR(validate(cache_spec));
  const DeviceGuard guard(memory->device().index());
  CudaLayerCache cache(std::move(memory));
  cache.layout_ = std::make_shared<const cuda::DeviceLayout>(cache_spec);
  cache.spec_ = std::make_shared<const CacheSpec>(std::move(cache_spec));
  cache.pool_ = PagePool::create(0);
  KVQ_ASSIGN_OR_RETURN(cache.packer_, cuda::Packer::create(cache.format(), kv_heads));
  cache.exact_prefill_ = options.exact_prefill;
  cache.layer_ = cache.memory_->next_layer();
  return cache;
}

std::vector<std::int64_t> CudaLayerCache::lengths() const {
  std::vector<std::int64_t> lengths;
  for (const Sequence& sequence : sequences_) lengths.push_back(sequence.length());
  return lengths;
}

ByteCount CudaLayerCache::bytes() const {
  ByteCount sum;
  for (const Sequence& sequence : sequences_) {
    const ByteCount bytes = sequence.bytes();
    sum.pages += bytes.pages;
    sum.exact += bytes.exact;
    sum.allocated += bytes.allocated;
  }
  return sum;
}

Status CudaLayerCache::use(cudaStream_t stream) const {
  KVQ_RETURN_IF_ERROR(memory_->check_numbers());
  return memory_->device().device()->use_stream(stream);
}

cuda::DeviceSequence& CudaLayerCache::sequence(std::size_t index) const {
  return static_cast<cuda::DeviceSequence&>(sequences_[index].state());
}

Status CudaLayerCache::add_sequences(int count) {
  const cuda::DeviceMemory memory{memory_->device().device(), memory_->arena()};
  for (int i = 0; i < count; ++i) {
    sequences_.emplace_back(std::make_unique<cuda::DeviceSequence>(spec_, layout_, pool_, memory));
  }
  return {};
}

Status CudaLayerCache::check(const Rows& rows, const Counts& counts, const char* name) const {
  if (rows.head_dim != spec_->head_dim) {
    return fail("{}: expected heads of {} numbers, found {}", name, spec_->head_dim, rows.head_dim);
  }
  if (rows.batch < 1 || rows.tokens < 1) {
    return fail("{}: expected at least one sequence and one token, found {} and {}", name,
                rows.batch, rows.tokens);
  }
  const int batch_found = counts.empty() ? rows.batch : static_cast<int>(counts.size());
  if (!sequences_.empty() && batch_found != batch()) {
    return fail("{}: expected a batch of {} sequences as the cache holds, found {}", name, batch(),
                batch_found);
  }
  if (counts.empty()) return {};
  if (rows.batch != 1 || rows.tokens != std::accumulate(counts.begin(), counts.end(), 0)) {
    return fail("{}: expected the rows of {} sequences in one, found {} times {}", name,
                counts.size(), rows.batch, rows.tokens);
  }
  return {};
}

int CudaLayerCache::tokens_of(std::size_t sequence, int tokens, const Counts& counts) const {
  return counts.empty() ? tokens : counts[sequence];
}

Status CudaLayerCache::check_appended(const Rows& key, const Rows& value,
                                      const Counts& counts) const {
  for (const auto& [rows, name] : {std::pair(&key, "key"), std::pair(&value, "value")}) {
    KVQ_RETURN_IF_ERROR(check(*rows, counts, name));
    if (rows->heads != spec_->kv_heads) {
      return fail("{}: expected {} kv heads, found {}", name, spec_->kv_heads, rows->heads);
    }
    const cuda::RowStrides strides = strides_of(*rows);
    if (((strides.sequence | strides.token | strides.head) & 3) != 0) {
      return fail("{}: expected strides in multiples of 4 numbers", name);
    }
  }
  if (key.batch != value.batch || key.tokens != value.tokens || key.number != value.number) {
    return fail("value: expected {} sequences of {} tokens and numbers of one kind, as key has",
                key.batch, key.tokens);
  }
  return {};
}

Status CudaLayerCache::append(const Rows& key, const Rows& value, const Counts& counts,
                              cudaStream_t stream) {
  const DeviceGuard guard(device());
  KVQ_RETURN_IF_ERROR(use(stream));
  KVQ_RETURN_IF_ERROR(check_appended(key, value, counts));
  const bool first = sequences_.empty();
  if (first) {
    KVQ_RETURN_IF_ERROR(
        add_sequences(counts.empty() ? key.batch : static_cast<int>(counts.size())));
  }
  Status appended = begin_chunks(key.tokens, counts);
  if (appended && !items_.empty()) {
    appended = describe_pass();
    if (appended) appended = pack(tables_->tables.early(0), stream);
    if (appended) appended = write_rows(key, value, stream);
    if (appended) appended = pack(tables_->tables.late(0), stream);
  }
  if (appended) {
    finish();
    return {};
  }
  abort();
  if (first) sequences_.clear();
  return appended;
}

Status CudaLayerCache::begin_chunks(int tokens, const Counts& counts) {
  items_.clear();
  described_.clear();
  for (std::size_t i = 0; i < sequences_.size(); ++i) {
    described_.push_back(tokens_of(i, tokens, counts));
    if (described_.back() == 0) continue;
    KVQ_RETURN_IF_ERROR(sequences_[i].begin_chunk(described_.back()));
    items_.push_back({&sequences_[i], {}, 0});
  }
  return {};
}

void CudaLayerCache::abort() {
  tables_ = nullptr;
  for (const PassItem& item : items_) item.sequence->abort_chunk();
}

Status CudaLayerCache::describe_pass() {
  KVQ_ASSIGN_OR_RETURN(CudaDevice::Tables * tables, memory_->device().next_tables(std::accumulate(
                                                        described_.begin(), described_.end(), 0)));
  return describe_pass(tables);
}

Status CudaLayerCache::describe_pass(CudaDevice::Tables* tables) {
  static constexpr int kGroups[] = {0};  // one layer, one format
  tables_ = tables;
  turn_ = tables->turn;
  KVQ_RETURN_IF_ERROR(
      tables_->tables.build(items_, *layout_, memory_->arena()->base(), kGroups, 1));
  KVQ_RETURN_IF_ERROR(tables_->tables.copy_to_device(memory_->device().stream()));
  if (tables->copied == nullptr) return {};
  return cuda::check(cudaEventRecord(tables->copied, memory_->device().stream()), "event");
}

Status CudaLayerCache::pack(const cuda::PackRange& range, cudaStream_t stream) const {
  if (range.count == 0) return {};
  cuda::PackBatch batch;
  batch.jobs = tables_->tables.jobs() + range.first;
  batch.max_jobs = range.count;
  return packer_->run(batch, stream);
}

Status CudaLayerCache::write_rows(const Rows& key, const Rows& value, cudaStream_t stream) const {
  cuda::AppendRows batch{};
  batch.key = key.data;
  batch.value = value.data;
  batch.type = type_of(key.number);
  batch.key_strides = strides_of(key);
  batch.value_strides = strides_of(value);
  batch.tokens = key.tokens;
  batch.places = tables_->tables.places();
  batch.base = memory_->arena()->base();
  batch.bad = memory_->bad();
  batch.rows = tables_->tables.rows();
  batch.kv_heads = spec_->kv_heads;
  batch.head_dim = spec_->head_dim;
  batch.sinks = spec_->sinks;
  batch.layer = layer_;
  return cuda::check(cuda::append_rows(batch, stream), "append");
}

// What the chunk's own queries read stays until the next chunk.
void CudaLayerCache::finish() {
  for (const PassItem& item : items_) cuda::device_sequence(item).finish_chunk();
}

Status CudaLayerCache::describe_newest(int tokens, const Counts& counts) {
  Counts wanted;
  for (std::size_t i = 0; i < sequences_.size(); ++i) {
    wanted.push_back(tokens_of(i, tokens, counts));
  }
  if (tables_ != nullptr && tables_->turn == turn_ && wanted == described_) return {};
  items_.clear();
  Status status;
  for (std::size_t i = 0; i < sequences_.size() && status; ++i) {
    if (wanted[i] == 0) continue;
    status = sequence(i).reopen_chunk(wanted[i]);
    if (status) items_.push_back({&sequences_[i], {}, 0});
  }
  described_ = std::move(wanted);
  if (status && !items_.empty()) status = describe_pass();
  finish();
  if (!status) tables_ = nullptr;
  return status;
}

template <typename Batch>
Batch CudaLayerCache::batch_of_tables() const {
  Batch batch;
  cuda::describe_caches(*layout_, memory_->arena()->base(), 0, tables_->tables, batch);
  return batch;
}

Status CudaLayerCache::check_query(const Rows& query, const Counts& counts) const {
  KVQ_RETURN_IF_ERROR(check(query, counts, "query"));
  const std::int64_t width = std::int64_t{query.heads} * query.head_dim;
  if ((query.heads > 1 && query.head_stride != query.head_dim) ||
      (query.tokens > 1 && query.token_stride != width) ||
      (query.batch > 1 && query.batch_stride != query.tokens * width)) {
    return fail("query: expected contiguous rows of [batch, tokens, query_heads, head_dim]");
  }
  return {};
}

Status CudaLayerCache::attend(const Rows& query, std::byte* output, float scale,
                              const Counts& counts, cudaStream_t stream) {
  const DeviceGuard guard(device());
  KVQ_RETURN_IF_ERROR(use(stream));
  KVQ_RETURN_IF_ERROR(check_query(query, counts));
  KVQ_RETURN_IF_ERROR(describe_newest(query.tokens, counts));
  if (items_.empty()) return {};
  return attend_newest(query, output, scale, stream);
}

Status CudaLayerCache::attend_newest(const Rows& query, std::byte* output, float scale,
                                     cudaStream_t stream) const {
  const cuda::PassTables& tables = tables_->tables;
  const AttentionShape shape{query.heads, spec_->kv_heads, spec_->head_dim, scale};
  const bool prefills = tables.longest_chunk() > (exact_prefill_ ? 1 : kMaxDecodeTokens);
  KVQ_ASSIGN_OR_RETURN(
      const AttentionKernels* kernels,
      memory_->device().attention(shape, format(), {spec_->sinks, spec_->window, exact_prefill_},
                                  prefills ? 1 : tables.rows()));
  const auto run = [&](auto batch, const auto& kernel, auto... workspace) {
    batch.query = query.data;
    batch.output = output;
    batch.query_type = batch.output_type = type_of(query.number);
    return kernel.run(batch, workspace..., stream);
  };
  if (prefills) {
    auto batch = batch_of_tables<cuda::PrefillBatch>();
    batch.sequences = static_cast<int>(items_.size());
    batch.tokens = tables.rows();
    batch.query_starts = tables.starts();
    batch.lengths = tables.chunks();
    return run(batch, kernels->prefill);
  }
  auto batch = batch_of_tables<cuda::DecodeBatch>();
  batch.sequences = tables.rows();
  batch.lengths = tables.lengths();
  batch.tables = tables.decodes() ? nullptr : tables.tables();
  return run(batch, kernels->decode, kernels->workspace.as<void>());
}

CudaLayerCache::StepTables::StepTables() {
  cudaEventCreateWithFlags(&copied, cudaEventDisableTiming);
}

CudaLayerCache::StepTables::~StepTables() { cudaEventDestroy(copied); }

Result<CudaLayerCache::StepKey> CudaLayerCache::begin_step(cudaStream_t stream) {
  const DeviceGuard guard(device());
  KVQ_RETURN_IF_ERROR(use(stream));
  if (sequences_.empty()) return fail("begin_step: expected a cache that holds tokens");
  if (step_ == nullptr) step_ = std::make_unique<StepTables>();
  KVQ_RETURN_IF_ERROR(cuda::check(cudaEventSynchronize(step_->copied), "tables of a step"));
  Status begun = begin_chunks(1, {});
  if (begun) begun = describe_pass(&step_->tables);
  if (begun) begun = cuda::check(cudaEventRecord(step_->copied, stream), "tables of a step");
  if (begun) begun = pack(tables_->tables.early(0), stream);
  if (!begun) {
    abort();
    return tl::unexpected(begun.error());
  }
  finish();
  const cuda::PassTables& tables = tables_->tables;
  return StepKey{reinterpret_cast<std::uintptr_t>(tables.places()),
                 static_cast<std::uintptr_t>(tables.page_stride()),
                 static_cast<std::uintptr_t>(tables.row_stride())};
}

Status CudaLayerCache::attend_step(const Rows& key, const Rows& value, const Rows& query,
                                   std::byte* output, float scale, cudaStream_t stream) const {
  const DeviceGuard guard(device());
  KVQ_RETURN_IF_ERROR(check_appended(key, value, {}));
  KVQ_RETURN_IF_ERROR(check_query(query, {}));
  if (step_ == nullptr || tables_ != &step_->tables || key.tokens != 1 || query.tokens != 1) {
    return fail("attend_step: expected the one token of every sequence that begin_step() began");
  }
  KVQ_RETURN_IF_ERROR(write_rows(key, value, stream));
  return attend_newest(query, output, scale, stream);
}

void CudaLayerCache::forget_long_chunk() {
  if (described_.empty() || *std::ranges::max_element(described_) <= kKeptTokens) return;
  for (std::size_t i = 0; i < sequences_.size(); ++i) sequence(i).drop_chunk_rows();
  tables_ = nullptr;
}

Status CudaLayerCache::read(const Rows& key, const Rows& value, cudaStream_t stream) {
  const DeviceGuard guard(device());
  KVQ_RETURN_IF_ERROR(use(stream));
  const auto all = lengths();
  const std::int64_t longest = all.empty() ? 0 : *std::ranges::max_element(all);
  for (const Rows* rows : {&key, &value}) {
    if (rows->batch != batch() || rows->heads != spec_->kv_heads || rows->tokens != longest ||
        rows->head_dim != spec_->head_dim || rows->batch_stride != key.batch_stride ||
        rows->head_stride != key.head_stride || rows->token_stride != key.token_stride ||
        rows->number != key.number) {
      return fail("read: expected two arrays of the shape [{}, {}, {}, {}] and one kind", batch(),
                  spec_->kv_heads, longest, spec_->head_dim);
    }
  }
  Counts newest;
  for (const std::int64_t length : all) newest.push_back(length > 0 ? 1 : 0);
  KVQ_RETURN_IF_ERROR(describe_newest(1, newest));
  KVQ_ASSIGN_OR_RETURN(const cuda::Dequantize dequantize,
                       cuda::Dequantize::create(format(), spec_->kv_heads));
  auto caches = batch_of_tables<cuda::DecodeBatch>();
  caches.sequences = 1;
  caches.lengths = tables_->tables.lengths();
  const int bytes = key.number == Number::kFloat32 ? 4 : 2;
  for (int i = 0; i < batch(); ++i) {
    if (newest[static_cast<std::size_t>(i)] == 0) continue;
    const std::int64_t offset = i * key.batch_stride * bytes;
    const cuda::PlainRows rows{key.data + offset, value.data + offset, type_of(key.number),
                               key.batch_stride,  key.head_stride,     key.token_stride};
    KVQ_RETURN_IF_ERROR(dequantize.run(caches, longest, rows, memory_->device().stream()));
    ++caches.lengths;
    caches.page_table += caches.table_stride;
    caches.row_blocks += caches.row_blocks_stride;
  }
  return {};
}

Result<CudaLayerCache> CudaLayerCache::select(std::span<const int> source, cudaStream_t stream) {
  const DeviceGuard guard(device());
  KVQ_RETURN_IF_ERROR(use(stream));
  CudaLayerCache copy(memory_);
  copy.spec_ = spec_;
  copy.layout_ = layout_;
  copy.pool_ = pool_;
  copy.packer_ = packer_;
  copy.exact_prefill_ = exact_prefill_;
  copy.layer_ = layer_;
  for (const int from : source) {
    if (from < 0 || from >= batch()) {
      return fail("select: expected a sequence from 0 to {}, found {}", batch() - 1, from);
    }
    KVQ_ASSIGN_OR_RETURN(Sequence fork, sequences_[static_cast<std::size_t>(from)].fork());
    copy.sequences_.push_back(std::move(fork));
  }
  return copy;
}

Status CudaLayerCache::reorder(std::span<const int> source, cudaStream_t stream) {
  const DeviceGuard guard(device());
  KVQ_RETURN_IF_ERROR(use(stream));
  tables_ = nullptr;
  return kvq::reorder(sequences_, source);
}

Status CudaLayerCache::truncate(std::span<const std::int64_t> lengths, cudaStream_t stream) {
  const DeviceGuard guard(device());
  KVQ_RETURN_IF_ERROR(use(stream));
  if (lengths.size() != sequences_.size()) {
    return fail("truncate: expected {} lengths, found {}", batch(), lengths.size());
  }
  for (std::size_t i = 0; i < sequences_.size(); ++i) {
    if (lengths[i] < 0 || lengths[i] > sequences_[i].length()) {
      return fail("truncate: expected a length from 0 to {}, found {}", sequences_[i].length(),
                  lengths[i]);
    }
  }
  tables_ = nullptr;
  for (std::size_t i = 0; i < sequences_.size(); ++i) {
    KVQ_RETURN_IF_ERROR(sequences_[i].truncate(lengths[i]));
  }
  return {};
}

Result<std::string> CudaLayerCache::kernel_name(int query_heads) const {
  const DeviceGuard guard(device());
  const AttentionShape shape{query_heads, spec_->kv_heads, spec_->head_dim, 1};
  KVQ_ASSIGN_OR_RETURN(const cuda::Decode decode,
                       cuda::Decode::create(shape, format(), {.max_sequences = 1}));
  return decode.kernel_name();
}

}  // namespace kvq::python
