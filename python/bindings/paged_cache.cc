#include "python/bindings/paged_cache.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cstring>
#include <utility>

#include "kvq/cache/cache_spec.h"
#include "kvq/codec/pack.h"

namespace kvq::python {
namespace {

constexpr int kMaxHeadDim = 256;
// Kernels load whole cache lines of a page.
constexpr std::uintptr_t kBlockAlignment = 64;

std::int64_t page_of(std::int64_t position) { return position / kPageTokens; }
std::int64_t page_start(std::int64_t position) { return page_of(position) * kPageTokens; }

bool all_finite(const Half* numbers, int count) {
  unsigned bad = 0;
  for (int i = 0; i < count; ++i) bad |= (numbers[i].bits & 0x7c00U) == 0x7c00U ? 1U : 0U;
  return bad == 0;
}

// [rows, heads, head_dim] without gaps, in float32.
bool is_plain(const Rows& rows) {
  return rows.number == Number::kFloat32 && rows.head_stride == rows.head_dim &&
         rows.token_stride == std::int64_t{rows.heads} * rows.head_dim;
}

}  // namespace

PagedCache::PagedCache(std::vector<PageFormat> formats, const PagedShape& shape)
    : shape_(shape), formats_(std::move(formats)) {
  const std::int64_t elements = tensor_elements(slot_rows()) * 2 * shape_.slots;
  for (std::size_t layer = 0; layer < formats_.size(); ++layer) {
    slot_memory_.push_back(
        std::make_unique_for_overwrite<Half[]>(static_cast<std::size_t>(elements)));
  }
}

Result<PagedCache> PagedCache::create(std::span<const LayerSpec> layers, const PagedShape& shape) {
  CacheSpec spec;
  spec.layers.assign(layers.begin(), layers.end());
  spec.kv_heads = shape.kv_heads;
  spec.head_dim = shape.head_dim;
  spec.sinks = 0;
  spec.window = shape.window;
  KVQ_RETURN_IF_ERROR(validate(spec));
  if (shape.slots < 1) return fail("slots: expected at least 1, found {}", shape.slots);
  std::vector<PageFormat> formats;
  for (const LayerSpec& layer : layers) {
    KVQ_ASSIGN_OR_RETURN(const PageFormat format, PageFormat::create(layer, shape.head_dim));
    formats.push_back(format);
  }
  return PagedCache(std::move(formats), shape);
}

std::int64_t PagedCache::slot_rows() const { return kPageTokens + shape_.window; }

std::int64_t PagedCache::tensor_elements(std::int64_t capacity) const {
  return capacity * shape_.kv_heads * shape_.head_dim;
}

std::int64_t PagedCache::slot_bytes() const {
  return tensor_elements(slot_rows()) * 2 * shape_.slots * layers() *
         static_cast<std::int64_t>(sizeof(Half));
}

Status PagedCache::check_request(const PagedStep& step, std::size_t index,
                                 std::int64_t block_count) const {
  const std::int64_t tokens = step.starts[index + 1] - step.starts[index];
  const std::int64_t end = step.lengths[index];
  const std::int64_t begin = end - tokens;
  const std::int64_t first = step.firsts[index];
  if (tokens < 1 || begin < 0) {
    return fail("request {}: expected 1 to {} new tokens, found {}", index, end, tokens);
  }
  if (step.slots[index] < 0 || step.slots[index] >= shape_.slots) {
    return fail("request {}: slot: expected 0 to {}, found {}", index, shape_.slots - 1,
                step.slots[index]);
  }
  if (first < 0 || first % kPageTokens != 0 || first > page_start(begin) ||
      begin - first >= slot_rows()) {
    return fail(
        "request {}: first row: expected a block's start at most {} before token {}, "
        "found {}",
        index, slot_rows() - 1, begin, first);
  }
  // Blocks that are written or read; the last one is neither before it is full.
  if (page_of(end) > step.columns) {
    return fail("request {}: expected {} blocks in its table, found {}", index, page_of(end),
                step.columns);
  }
  for (std::int64_t page = 0; page < page_of(end); ++page) {
    const std::int32_t block =
        step.table[index * static_cast<std::size_t>(step.columns) + static_cast<std::size_t>(page)];
    if (block < 0 || block >= block_count) {
      return fail("request {}: block {}: expected 0 to {}, found {}", index, page, block_count - 1,
                  block);
    }
  }
  return {};
}

void PagedCache::plan_request(int layer, const PagedStep& step, std::size_t index) {
  Request request{};
  request.row = step.starts[index];
  request.tokens = step.starts[index + 1] - step.starts[index];
  request.end = step.lengths[index];
  request.begin = request.end - request.tokens;
  request.first = step.firsts[index];
  request.keep = std::max(request.first, page_start(request.end) - shape_.window);
  request.slot = slot_memory_[static_cast<std::size_t>(layer)].get() +
                 tensor_elements(slot_rows()) * 2 * step.slots[index];
  request.rows = request.slot;
  request.capacity = slot_rows();
  if (request.end - request.first > slot_rows()) {
    request.rows = nullptr;  // takes part of `rows_`
    request.capacity = request.end - request.first;
  }
  request.table = step.table.data() + static_cast<std::int64_t>(index) * step.columns;
  for (std::int64_t page = page_of(request.begin); page < page_of(request.end); ++page) {
    pack_tasks_.push_back({static_cast<int>(requests_.size()), page});
  }
  requests_.push_back(request);
}

Status PagedCache::plan_step(int layer, const Blocks& blocks, const PagedStep& step,
                             const Rows& key, const Rows& query) {
  if (layer < 0 || layer >= layers()) {
    return fail("layer: expected 0 to {}, found {}", layers() - 1, layer);
  }
  if (reinterpret_cast<std::uintptr_t>(blocks.data) % kBlockAlignment != 0 ||
      static_cast<std::uintptr_t>(blocks.stride) % kBlockAlignment != 0) {
    return fail("blocks: expected addresses that are multiples of {}", kBlockAlignment);
  }
  const std::size_t count = step.lengths.size();
  if (step.slots.size() != count || step.firsts.size() != count ||
      step.starts.size() != count + 1 ||
      step.table.size() < count * static_cast<std::size_t>(step.columns)) {
    return fail("step: expected one start, length, slot and table row a request of {}", count);
  }
  if (count > 0 && (step.starts.back() > key.tokens || step.starts.back() > query.tokens)) {
    return fail("step: expected {} rows, found {} keys and {} queries", step.starts.back(),
                key.tokens, query.tokens);
  }
  requests_.clear();
  pack_tasks_.clear();
  for (std::size_t i = 0; i < count; ++i) {
    KVQ_RETURN_IF_ERROR(check_request(step, i, blocks.count));
    plan_request(layer, step, i);
  }
  return {};
}

// Memory for long chunks' rows, queries and outputs.
void PagedCache::take_workspace(const Rows& query, const Rows& output) {
  const auto long_rows = [&](const Request& request) {
    return request.rows == nullptr ? static_cast<std::size_t>(2 * tensor_elements(request.capacity))
                                   : 0;
  };
  std::size_t elements = 0;
  for (const Request& request : requests_) elements += long_rows(request);
  if (rows_.size() < elements) rows_.resize(elements);
  Half* next = rows_.data();
  for (Request& request : requests_) {
    const std::size_t taken = long_rows(request);
    if (taken == 0) continue;
    request.rows = next;
    next += taken;
  }
  const Request& last = requests_.back();
  const std::size_t numbers = static_cast<std::size_t>(last.row + last.tokens) *
                              static_cast<std::size_t>(shape_.query_heads * shape_.head_dim);
  if (!is_plain(query) && queries_.size() < numbers) queries_.resize(numbers);
  if (!is_plain(output) && outputs_.size() < numbers) outputs_.resize(numbers);
  output_rows_ = is_plain(output) ? reinterpret_cast<float*>(output.data) : outputs_.data();
}

// The rows that the slot holds, then those of the step. False if one is not finite in fp16.
bool PagedCache::write_rows(const Request& request, int head, const Rows& key, const Rows& value) {
  std::array<float, kMaxHeadDim> numbers;
  bool finite = true;
  for (const Rows* tensor : {&key, &value}) {
    const int part = tensor == &key ? head : shape_.kv_heads + head;
    Half* target = request.rows + part * request.capacity * shape_.head_dim;
    const std::int64_t held = request.begin - request.first;
    if (request.rows != request.slot && held > 0) {
      std::memcpy(target, request.slot + part * slot_rows() * shape_.head_dim,
                  static_cast<std::size_t>(held * shape_.head_dim) * sizeof(Half));
    }
    target += held * shape_.head_dim;
    for (int token = 0; token < request.tokens; ++token, target += shape_.head_dim) {
      read_row(*tensor, 0, head, request.row + token, numbers.data());
      to_half(numbers.data(), target, static_cast<std::size_t>(shape_.head_dim));
      finite &= all_finite(target, shape_.head_dim);
    }
  }
  return finite;
}

void PagedCache::read_queries(const Request& request, int head, const Rows& query) {
  const int group = shape_.query_heads / shape_.kv_heads;
  for (int token = request.row; token < request.row + request.tokens; ++token) {
    for (int i = head * group; i < (head + 1) * group; ++i) {
      read_row(query, 0, i, token,
               queries_.data() + (std::int64_t{token} * shape_.query_heads + i) * shape_.head_dim);
    }
  }
}

void PagedCache::make_views(const PageFormat& format, const Blocks& blocks) {
  pages_.clear();
  views_.clear();
  items_.clear();
  std::size_t count = 0;
  for (const Request& request : requests_) count += static_cast<std::size_t>(page_of(request.end));
  pages_.reserve(count);
  views_.reserve(requests_.size());
  for (const Request& request : requests_) {
    const std::size_t first_page = pages_.size();
    for (std::int64_t page = 0; page < page_of(request.end); ++page) {
      pages_.push_back({blocks.data + request.table[page] * blocks.stride,
                        static_cast<std::int64_t>(format.page_bytes)});
    }
    LayerView& view = views_.emplace_back();
    view.format = &format;
    view.kv_heads = shape_.kv_heads;
    view.length = request.end;
    view.window = shape_.window;
    view.pages = std::span(pages_).subspan(first_page);
    view.tail.key = request.rows;
    view.tail.value = request.rows + tensor_elements(request.capacity);
    view.tail.head_stride = request.capacity * shape_.head_dim;
    view.tail.first = request.first;
    view.tail.count = request.end - request.first;
  }
}

void PagedCache::write_output(const Request& request, int head, const Rows& output) const {
  const int group = shape_.query_heads / shape_.kv_heads;
  for (int token = request.row; token < request.row + request.tokens; ++token) {
    for (int i = head * group; i < (head + 1) * group; ++i) {
      write_row(output_rows_ + (std::int64_t{token} * shape_.query_heads + i) * shape_.head_dim,
                output, 0, i, token);
    }
  }
}

// Leaves in the slot what the request's next step needs.
void PagedCache::keep_rows(const Request& request, int head) const {
  if (request.rows == request.slot && request.keep == request.first) return;
  for (const int part : {head, shape_.kv_heads + head}) {
    const Half* source =
        request.rows + (part * request.capacity + request.keep - request.first) * shape_.head_dim;
    std::memmove(
        request.slot + part * slot_rows() * shape_.head_dim, source,
        static_cast<std::size_t>((request.end - request.keep) * shape_.head_dim) * sizeof(Half));
  }
}

// Packs one page of one kv head, from the rows that write_rows() left.
void PagedCache::pack(const PackTask& task, int head, const PageFormat& format,
                      const Blocks& blocks, Isa isa) const {
  const Request& request = requests_[static_cast<std::size_t>(task.request)];
  const std::int64_t row = task.page * kPageTokens - request.first;
  const Half* keys = request.rows + (head * request.capacity + row) * shape_.head_dim;
  pack_page(format, keys, keys + tensor_elements(request.capacity),
            blocks.data + request.table[task.page] * blocks.stride +
                head * static_cast<std::int64_t>(format.page_bytes),
            isa);
}

Status PagedCache::attend(const Rows& query, float scale, Workers& workers) {
  const float* queries =
      is_plain(query) ? reinterpret_cast<const float*>(query.data) : queries_.data();
  for (std::size_t i = 0; i < requests_.size(); ++i) {
    const std::int64_t offset =
        std::int64_t{requests_[i].row} * shape_.query_heads * shape_.head_dim;
    items_.push_back({&views_[i], queries + offset, output_rows_ + offset, requests_[i].tokens});
  }
  const AttentionShape shape{shape_.query_heads, shape_.kv_heads, shape_.head_dim, scale};
  KVQ_ASSIGN_OR_RETURN(Attention * attention, workers.attention(shape, false));
  return attention->run(items_, workers.threads());
}

Status PagedCache::step(int layer, const Blocks& blocks, const PagedStep& step, const Rows& key,
                        const Rows& value, const Rows& query, const Rows& output, float scale) {
  Workers& workers = Workers::instance();
  const auto held = workers.lock();
  KVQ_RETURN_IF_ERROR(plan_step(layer, blocks, step, key, query));
  if (requests_.empty()) return {};
  KVQ_ASSIGN_OR_RETURN(const Isa isa, default_isa());
  take_workspace(query, output);
  const PageFormat& format = formats_[static_cast<std::size_t>(layer)];
  const auto each_head = [&](const auto& tasks, auto&& body) {
    workers.threads().run(static_cast<int>(tasks.size()) * shape_.kv_heads, [&](int index, int) {
      body(tasks[static_cast<std::size_t>(index / shape_.kv_heads)], index % shape_.kv_heads);
    });
  };

  std::atomic<bool> finite{true};
  each_head(requests_, [&](const Request& request, int head) {
    if (!write_rows(request, head, key, value)) finite = false;
    if (!is_plain(query)) read_queries(request, head, query);
  });
  if (!finite) {
    return fail("layer {}: expected finite keys and values within +-{}", layer, kHalfMax);
  }
  each_head(pack_tasks_,
            [&](const PackTask& task, int head) { pack(task, head, format, blocks, isa); });
  make_views(format, blocks);
  KVQ_RETURN_IF_ERROR(attend(query, scale, workers));
  each_head(requests_, [&](const Request& request, int head) {
    if (!is_plain(output)) write_output(request, head, output);
    keep_rows(request, head);
  });
  return {};
}

}  // namespace kvq::python
