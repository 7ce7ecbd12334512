#include "kvq/attention/cpu/decode.h"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <vector>

#include "kvq/attention/boundary.h"
#include "kvq/attention/cpu/decode_plan.h"
#include "kvq/attention/softmax_state.h"
#include "kvq/codec/hadamard.h"

namespace kvq {
namespace {

// Pages of one unit of work: long enough that its cold start (no page was prefetched) does not
// count, short enough to share out.
constexpr std::int64_t kUnitPages = 64;
constexpr std::int64_t kUnitRows = 1024;  // exact rows of one unit

bool half_supported(const TensorFormat& format) {
  // Scales that belong to a depth must hold for all 64 rows of a block.
  return format.spec.bits == Bits::k16 || !format.depth_wise || format.group_rows >= kBlockRows;
}

// One kv head of one item.
struct Stream {
  const AttentionItem* item;
  const DecodePlan* plan;
  int head;
  std::int64_t pages;      // read as pages
  std::int64_t tail_rows;  // of the view's tail, read exactly
  int page_units;
  int exact_units;
  int first_unit;  // index of the first partial result; page units come first
  DecodeQuery query;
};

struct Unit {
  int stream;
  int index;  // among the stream's units
};

// A worker's or call's memory, 64-byte aligned, grown and kept.
class Arena {
 public:
  void reserve(std::size_t bytes) {
    used_ = 0;
    if (lines_.size() * sizeof(Line) < bytes) lines_.resize(bytes / sizeof(Line) + 1);
  }
  template <typename T>
  T* take(std::size_t count) {
    std::byte* const result = lines_.front().bytes + used_;
    used_ += rounded(count * sizeof(T));
    return reinterpret_cast<T*>(result);
  }
  static std::size_t rounded(std::size_t bytes) { return (bytes + 63) / 64 * 64; }

 private:
  struct alignas(64) Line {
    std::byte bytes[64];
  };
  std::vector<Line> lines_;
  std::size_t used_ = 0;
};

// A unit's result for one query head: {reference, sum} in 16 floats, then [output_stride]
// unnormalized channels.
std::size_t partial_floats(const DecodePlan& plan) {
  return static_cast<std::size_t>(plan.output_stride) + 16;
}

std::size_t query_bytes(const DecodePlan& plan) {
  const std::size_t heads = static_cast<std::size_t>(plan.heads);
  const std::size_t segments = heads * static_cast<std::size_t>(plan.key_segments);
  return 2 * Arena::rounded(heads * plan.output_stride * sizeof(float)) +
         Arena::rounded(2 * heads * kQueryCodeStride) + Arena::rounded(heads * sizeof(float)) +
         2 * Arena::rounded(segments * sizeof(float));
}

void reset(const DecodePlan& plan, DecodeScratch& scratch) {
  for (int head = 0; head < plan.heads; ++head) {
    scratch.reference[head] = kNoScore;
    std::fill_n(scratch.sum[head], 16, 0.0F);
    std::fill_n(scratch.center[head], 16 * kDecodeMaxBlocks, 0.0F);
  }
  std::fill_n(scratch.output, plan.heads * plan.output_stride, 0.0F);
}

int center_count(const DecodePlan& plan) {
  if (!plan.value_format.depth_wise) return 0;
  return 16 * (plan.value_blocks_share ? 1 : plan.value_format.blocks);
}

// A partial result starts with {reference, sum}.
void store_state(const DecodeScratch& scratch, int head, float* partial) {
  partial[0] = scratch.reference[head];
  partial[1] = std::accumulate(scratch.sum[head], scratch.sum[head] + 16, 0.0F);
}

}  // namespace

struct Decoder::State {
  AttentionShape shape;
  AttentionOptions options;
  const DecodeKernels* kernels = nullptr;

  struct CachedPlan {
    LayerSpec spec;
    DecodePlan plan;
  };
  std::vector<std::unique_ptr<CachedPlan>> plans;
  std::vector<std::unique_ptr<DecodeScratch>> scratches;  // one per worker
  std::vector<Stream> streams;
  std::vector<Unit> units;
  Arena queries;
  Arena partials;
  float* partial_memory = nullptr;

  const DecodePlan* plan_for(const PageFormat& format);
  void lay_out(std::span<const AttentionItem* const> items);
  void prepare_query(Stream& stream);
  float* partial(const Stream& stream, int unit, int head) const;
  void run_pages(const Stream& stream, int index, DecodeScratch& scratch) const;
  void run_exact(const Stream& stream, int index, DecodeScratch& scratch) const;
  void finish(const Stream& stream) const;
};

const DecodePlan* Decoder::State::plan_for(const PageFormat& format) {
  for (const auto& cached : plans) {
    if (cached->spec == format.spec()) return &cached->plan;
  }
  auto cached = std::make_unique<CachedPlan>();
  cached->spec = format.spec();
  make_decode_plan(*kernels, format, shape.query_heads / shape.kv_heads,
                   options.precision == Precision::kDefault, cached->plan);
  plans.push_back(std::move(cached));
  return &plans.back()->plan;
}

// Cuts the items into streams and units and gives each its memory.
void Decoder::State::lay_out(std::span<const AttentionItem* const> items) {
  streams.clear();
  units.clear();
  int partial_count = 0;
  std::size_t bytes = 0;
  for (const AttentionItem* item : items) {
    const LayerView& view = *item->view;
    const DecodePlan* plan = plan_for(*view.format);
    const std::int64_t boundary = query_boundary(view, view.length - 1, options.exact_prefill);
    Stream stream{
        item, plan, 0, (boundary - view.sink_tokens) / kPageTokens, view.length - boundary, 0,
        0,    0,    {}};
    if (view.length <= view.sink_tokens) stream.pages = stream.tail_rows = 0;
    stream.page_units = static_cast<int>((stream.pages + kUnitPages - 1) / kUnitPages);
    stream.exact_units =
        static_cast<int>(std::max<std::int64_t>((stream.tail_rows + kUnitRows - 1) / kUnitRows, 1));
    for (stream.head = 0; stream.head < shape.kv_heads; ++stream.head) {
      stream.first_unit = partial_count;
      partial_count += stream.page_units + stream.exact_units;
      bytes += query_bytes(*plan);
      streams.push_back(stream);
    }
  }
  // Long units first: the short ones fill the gaps at the end.
  for (const bool exact : {false, true}) {
    for (int s = 0; s < static_cast<int>(streams.size()); ++s) {
      const Stream& stream = streams[s];
      const int begin = exact ? stream.page_units : 0;
      const int end = stream.page_units + (exact ? stream.exact_units : 0);
      for (int index = begin; index < end; ++index) units.push_back({s, index});
    }
  }
  queries.reserve(bytes);
  for (Stream& stream : streams) {
    const DecodePlan& plan = *stream.plan;
    const std::size_t heads = static_cast<std::size_t>(plan.heads);
    DecodeQuery& query = stream.query;
    query.stride = plan.output_stride;
    query.plain = queries.take<float>(heads * plan.output_stride);
    query.rows = queries.take<float>(heads * plan.output_stride);
    query.codes = queries.take<std::int8_t>(2 * heads * kQueryCodeStride);
    query.factor = queries.take<float>(heads);
    query.bias = queries.take<std::int32_t>(heads * plan.key_segments);
    query.sums = queries.take<float>(heads * plan.key_segments);
  }
  const std::size_t heads = static_cast<std::size_t>(shape.query_heads / shape.kv_heads);
  const std::size_t floats = static_cast<std::size_t>(padded_channels(shape.head_dim)) + 16;
  partials.reserve(partial_count * heads * floats * sizeof(float));
  partial_memory = partials.take<float>(partial_count * heads * floats);
}

void Decoder::State::prepare_query(Stream& stream) {
  const DecodePlan& plan = *stream.plan;
  DecodeQuery& query = stream.query;
  const int head_dim = shape.head_dim;
  const float* source =
      stream.item->query + static_cast<std::ptrdiff_t>(stream.head) * plan.heads * head_dim;
  const float scale = shape.scale * kLog2E;
  for (int head = 0; head < plan.heads; ++head) {
    float* const row = query.plain + head * query.stride;
    for (int i = 0; i < head_dim; ++i) row[i] = source[head * head_dim + i] * scale;
    std::fill(row + head_dim, row + query.stride, 0.0F);
  }
  if (stream.pages == 0) return;
  std::memcpy(query.rows, query.plain, sizeof(float) * plan.heads * query.stride);
  if (plan.key_format.spec.rotation == Rotation::kHadamard &&
      plan.key_format.spec.bits != Bits::k16) {
    for (int head = 0; head < plan.heads; ++head) {
      hadamard_rows(query.rows + head * query.stride, 1, head_dim, options.isa);
    }
  }
  if (!plan.key_format.depth_wise && plan.key_format.spec.bits != Bits::k16) {
    kernels->quantize_query(plan, query);
  }
}

float* Decoder::State::partial(const Stream& stream, int unit, int head) const {
  const std::ptrdiff_t index =
      static_cast<std::ptrdiff_t>(stream.first_unit + unit) * stream.plan->heads + head;
  return partial_memory + index * static_cast<std::ptrdiff_t>(partial_floats(*stream.plan));
}

void Decoder::State::run_pages(const Stream& stream, int index, DecodeScratch& scratch) const {
  const DecodePlan& plan = *stream.plan;
  const std::span<const PageRef> pages = stream.item->view->pages;
  const std::int64_t first = index * kUnitPages;
  const std::int64_t end = std::min(first + kUnitPages, stream.pages);
  const auto page_at = [&](std::int64_t i) {
    return pages[i].data + stream.head * pages[i].head_stride;
  };
  const int centers = center_count(plan);
  const std::size_t key_bytes = plan.key_format.bytes;
  // Nobody fetched the first page ahead: at least ask for all of it at once.
  for (std::size_t at = 0; at < plan.page_bytes; at += 64) __builtin_prefetch(page_at(first) + at);
  reset(plan, scratch);
  for (std::int64_t i = first; i < end; ++i) {
    const std::byte* const page = page_at(i);
    const std::byte* const next = i + 1 < end ? page_at(i + 1) : nullptr;
    const bool fetch = next != nullptr;
    plan.key.run(plan, stream.query, page, {next, fetch ? next + key_bytes : nullptr}, scratch);
    kernels->softmax(plan.heads, plan.output_stride, centers, scratch);
    plan.value.run(plan, page,
                   {fetch ? next + key_bytes : nullptr, fetch ? next + plan.page_bytes : nullptr},
                   scratch);
  }
  for (int head = 0; head < plan.heads; ++head) {
    float* const out = partial(stream, index, head);
    store_state(scratch, head, out);
    const float* const sums = scratch.output + head * plan.output_stride;
    for (int block = 0; block < plan.output_stride / 64; ++block) {
      const float* lanes = scratch.center[head] + 16 * (plan.value_blocks_share ? 0 : block);
      const float center = std::accumulate(lanes, lanes + 16, 0.0F);
      for (int slot = 0; slot < 64; ++slot) {
        out[16 + 64 * block + plan.value_row[slot]] =
            sums[64 * block + slot] * plan.output_unit[slot] + center;
      }
    }
  }
}

void Decoder::State::run_exact(const Stream& stream, int index, DecodeScratch& scratch) const {
  const DecodePlan& plan = *stream.plan;
  const LayerView& view = *stream.item->view;
  const int head_dim = shape.head_dim;
  reset(plan, scratch);
  const auto attend = [&](const ExactRows& rows, std::int64_t first, std::int64_t end) {
    const std::int64_t start = stream.head * rows.head_stride;
    for (std::int64_t i = first; i < end; i += 64) {
      const int count = static_cast<int>(std::min<std::int64_t>(end - i, 64));
      const std::int64_t at = start + i * head_dim;
      kernels->exact_keys(stream.query, rows.key + at, count, plan.heads, head_dim, scratch);
      kernels->softmax(plan.heads, plan.output_stride, 0, scratch);
      kernels->exact_values(rows.value + at, count, plan.heads, head_dim, plan.output_stride,
                            scratch);
    }
  };
  const int part = index - stream.page_units;
  if (part == 0) attend(view.sinks, 0, view.sinks.count);
  if (stream.tail_rows > 0) {
    const std::int64_t begin = view.length - stream.tail_rows - view.tail.first;
    const std::int64_t first = part * kUnitRows;
    attend(view.tail, begin + first, begin + std::min(first + kUnitRows, stream.tail_rows));
  }
  for (int head = 0; head < plan.heads; ++head) {
    float* const out = partial(stream, index, head);
    store_state(scratch, head, out);
    std::memcpy(out + 16, scratch.output + head * plan.output_stride,
                sizeof(float) * plan.output_stride);
  }
}

// Merges the units of a stream, pages first: their sum is rotated back as a whole.
void Decoder::State::finish(const Stream& stream) const {
  const DecodePlan& plan = *stream.plan;
  const int head_dim = shape.head_dim;
  const TensorSpec& spec = plan.value_format.spec;
  const bool rotated = spec.rotation == Rotation::kHadamard && spec.bits != Bits::k16;
  float* const output =
      stream.item->output + static_cast<std::ptrdiff_t>(stream.head) * plan.heads * head_dim;
  for (int head = 0; head < plan.heads; ++head) {
    float* const row = output + head * head_dim;
    std::fill_n(row, head_dim, 0.0F);
    SoftmaxState state;
    for (int unit = 0; unit < stream.page_units + stream.exact_units; ++unit) {
      if (unit == stream.page_units && unit > 0 && rotated) {
        hadamard_rows(row, 1, head_dim, options.isa);
      }
      const float* const part = partial(stream, unit, head);
      const SoftmaxState other{part[0], part[1]};
      const SoftmaxMerge factors = merge(state, other);
      for (int i = 0; i < head_dim; ++i) {
        row[i] = factors.mine * row[i] + factors.theirs * part[16 + i];
      }
    }
    const float factor = normalizer(state);
    for (int i = 0; i < head_dim; ++i) row[i] *= factor;
  }
}

bool decode_supports(const PageFormat& format, int group_heads, Isa isa) {
  const DecodeKernels* kernels = decode_kernels(isa);
  if (kernels == nullptr || group_heads > kDecodeMaxHeads) return false;
  return half_supported(format.key) && half_supported(format.value) &&
         kernels->key(format.key, 2).run != nullptr &&
         kernels->value(format.value, 1).run != nullptr;
}

std::string decode_kernel_name(const PageFormat& format, Isa isa) {
  return fmt::format("{}/dot k{} v{}", name(isa), name(format.key.spec.bits),
                     name(format.value.spec.bits));
}

Decoder::Decoder(const AttentionShape& shape, const AttentionOptions& options)
    : state_(std::make_unique<State>()) {
  state_->shape = shape;
  state_->options = options;
  state_->kernels = decode_kernels(options.isa);
}
Decoder::Decoder(Decoder&&) noexcept = default;
Decoder& Decoder::operator=(Decoder&&) noexcept = default;
Decoder::~Decoder() = default;

void Decoder::run(std::span<const AttentionItem* const> items, ThreadPool& threads) {
  State& state = *state_;
  state.lay_out(items);
  while (static_cast<int>(state.scratches.size()) < threads.size()) {
    state.scratches.push_back(std::make_unique<DecodeScratch>());
  }
  const int streams = static_cast<int>(state.streams.size());
  threads.run(streams, [&](int task, int) { state.prepare_query(state.streams[task]); });
  threads.run(static_cast<int>(state.units.size()), [&](int task, int worker) {
    const Unit unit = state.units[task];
    const Stream& stream = state.streams[unit.stream];
    DecodeScratch& scratch = *state.scratches[worker];
    if (unit.index < stream.page_units) {
      state.run_pages(stream, unit.index, scratch);
    } else {
      state.run_exact(stream, unit.index, scratch);
    }
  });
  threads.run(streams, [&](int task, int) { state.finish(state.streams[task]); });
}

}  // namespace kvq
