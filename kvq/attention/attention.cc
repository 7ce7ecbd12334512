#include "kvq/attention/attention.h"

#include <algorithm>
#include <new>
#include <utility>
#include <vector>

#include "kvq/attention/boundary.h"
#include "kvq/attention/cpu/decode.h"
#include "kvq/attention/cpu/prefill.h"

namespace kvq {
namespace {

// Items of so many tokens are decoded token by token (the tokens of one speculative step, say): the
// integer kernels take less time for a token's query heads than the tile kernels for as many rows.
// It also makes such a step's output the same, bit for bit, as that of single steps.
constexpr int kMaxDecodeTokens = 8;

Status check_shape(const AttentionShape& shape) {
  if (shape.kv_heads < 1 || shape.query_heads < 1 || shape.query_heads % shape.kv_heads != 0 ||
      shape.query_heads / shape.kv_heads > kMaxHeadsPerKvHead) {
    return fail(
        "attention: {} query heads and {} kv heads: expected 1 to {} query heads per kv head",
        shape.query_heads, shape.kv_heads, kMaxHeadsPerKvHead);
  }
  if (shape.head_dim < 16 || shape.head_dim > 256 || shape.head_dim % 16 != 0) {
    return fail("attention: head_dim {}: expected a multiple of 16 from 16 to 256", shape.head_dim);
  }
  if (!(shape.scale > 0)) return fail("attention: scale {}: expected more than 0", shape.scale);
  return {};
}

// The rows and pages that the item's queries read are there.
Status check_rows(const LayerView& view, int tokens, bool exact_prefill) {
  const std::int64_t sinks = std::min<std::int64_t>(view.sink_tokens, view.length);
  if (view.sinks.count != sinks) {
    return fail("attention: {} sink tokens of a view of {} tokens: expected {}", view.sinks.count,
                view.length, sinks);
  }
  if (view.length <= view.sink_tokens) return {};
  const ExactRows& tail = view.tail;
  const std::int64_t first = std::max<std::int64_t>(view.length - tokens, view.sink_tokens);
  if (tail.first < view.sink_tokens || (tail.first - view.sink_tokens) % kPageTokens != 0 ||
      tail.first + tail.count != view.length ||
      tail.first > query_boundary(view, first, exact_prefill) || tail.first > first) {
    return fail(
        "attention: tail of {} tokens from {}: expected one that begins at a page and holds "
        "tokens {} to {}",
        tail.count, tail.first, first, view.length);
  }
  const std::int64_t boundary = query_boundary(view, view.length - 1, exact_prefill);
  const std::int64_t pages = (boundary - view.sink_tokens) / kPageTokens;
  if (static_cast<std::int64_t>(view.pages.size()) < pages) {
    return fail("attention: view of {} pages: expected at least {}", view.pages.size(), pages);
  }
  return {};
}

Status check_item(const AttentionShape& shape, const AttentionItem& item, bool exact_prefill) {
  if (item.view == nullptr || item.view->format == nullptr || item.query == nullptr ||
      item.output == nullptr) {
    return fail("attention: an item lacks its view, format, query or output");
  }
  const LayerView& view = *item.view;
  if (view.kv_heads != shape.kv_heads || view.format->head_dim() != shape.head_dim) {
    return fail("attention: view of {} kv heads of {} numbers: expected {} of {}", view.kv_heads,
                view.format->head_dim(), shape.kv_heads, shape.head_dim);
  }
  if (item.tokens < 1 || item.tokens > view.length) {
    return fail("attention: {} query tokens of a sequence of {}: expected 1 to all", item.tokens,
                view.length);
  }
  return check_rows(view, item.tokens, exact_prefill);
}

}  // namespace

struct Attention::State {
  State(const AttentionShape& attention_shape, const AttentionOptions& attention_options)
      : shape(attention_shape),
        options(attention_options),
        prefill(shape, options.isa, options.exact_prefill),
        decoder(shape, options) {}

  bool decodes(const PageFormat& format) const {
    return decode_supports(format, shape.query_heads / shape.kv_heads, options.isa);
  }
  void sort(std::span<const AttentionItem> items);
  void add_single_tokens(const AttentionItem& item);

  AttentionShape shape;
  AttentionOptions options;
  Prefill prefill;
  Decoder decoder;
  std::vector<const AttentionItem*> prefill_items;
  std::vector<const AttentionItem*> decode_items;
  // Items of a few tokens, cut into their tokens: an item and a view each.
  std::vector<AttentionItem> token_items;
  std::vector<LayerView> token_views;
};

// Which kernels work on which item.
void Attention::State::sort(std::span<const AttentionItem> items) {
  prefill_items.clear();
  decode_items.clear();
  token_items.clear();
  token_views.clear();
  for (const AttentionItem& item : items) {
    if (item.tokens > kMaxDecodeTokens || !decodes(*item.view->format)) {
      prefill_items.push_back(&item);
    } else if (item.tokens == 1) {
      decode_items.push_back(&item);
    } else {
      add_single_tokens(item);
    }
  }
  // Once the vectors have stopped growing.
  for (std::size_t i = 0; i < token_items.size(); ++i) {
    token_items[i].view = &token_views[i];
    decode_items.push_back(&token_items[i]);
  }
}

// The view that each token has when it is the sequence's newest.
void Attention::State::add_single_tokens(const AttentionItem& item) {
  for (int token = 0; token < item.tokens; ++token) {
    const std::ptrdiff_t offset = std::ptrdiff_t{token} * shape.query_heads * shape.head_dim;
    token_items.push_back({nullptr, item.query + offset, item.output + offset, 1});
    LayerView& view = token_views.emplace_back(*item.view);
    view.length -= item.tokens - 1 - token;
    view.sinks.count = std::min(view.sinks.count, view.length);
    view.tail.count = std::max<std::int64_t>(0, view.length - view.tail.first);
  }
}

Result<Attention> Attention::create(const AttentionShape& shape, const AttentionOptions& options) {
  KVQ_RETURN_IF_ERROR(check_shape(shape));
  if (options.isa > host_isa()) {
    return fail("attention: this machine lacks {}; it has {}", name(options.isa), name(host_isa()));
  }
  return Attention(std::make_unique<State>(shape, options));
}

Attention::Attention(std::unique_ptr<State> state) : state_(std::move(state)) {}
Attention::Attention(Attention&&) noexcept = default;
Attention& Attention::operator=(Attention&&) noexcept = default;
Attention::~Attention() = default;

Status Attention::run(std::span<const AttentionItem> items, ThreadPool& threads) {
  State& state = *state_;
  for (const AttentionItem& item : items) {
    KVQ_RETURN_IF_ERROR(check_item(state.shape, item, state.options.exact_prefill));
  }
  try {
    state.sort(items);
    if (!state.decode_items.empty()) state.decoder.run(state.decode_items, threads);
    if (!state.prefill_items.empty()) state.prefill.run(state.prefill_items, threads);
  } catch (const std::bad_alloc&) {
    return fail("attention: not enough memory for the workspace of {} items", items.size());
  }
  return {};
}

std::string Attention::kernel_name(const PageFormat& format, bool decode) const {
  if (decode && state_->decodes(format)) return decode_kernel_name(format, state_->options.isa);
  return fmt::format("{}/tile k{} v{}", name(state_->options.isa), name(format.key.spec.bits),
                     name(format.value.spec.bits));
}

}  // namespace kvq
