#include "kvq/attention/attention.h"

#include <new>
#include <vector>

#include "kvq/attention/boundary.h"
#include "kvq/attention/cpu/prefill.h"

namespace kvq {
namespace {

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
  AttentionShape shape;
  AttentionOptions options;
  Prefill prefill;
  std::vector<const AttentionItem*> prefill_items;
};

Result<Attention> Attention::create(const AttentionShape& shape, const AttentionOptions& options) {
  KVQ_RETURN_IF_ERROR(check_shape(shape));
  if (options.isa > host_isa()) {
    return fail("attention: this machine lacks {}; it has {}", name(options.isa), name(host_isa()));
  }
  return Attention(std::unique_ptr<State>(
      new State{shape, options, Prefill(shape, options.isa, options.exact_prefill), {}}));
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
    state.prefill_items.clear();
    for (const AttentionItem& item : items) state.prefill_items.push_back(&item);
    state.prefill.run(state.prefill_items, threads);
  } catch (const std::bad_alloc&) {
    return fail("attention: not enough memory for the workspace of {} items", items.size());
  }
  return {};
}

std::string Attention::kernel_name(const PageFormat& format, bool /*decode*/) const {
  return fmt::format("{}/tile k{} v{}", name(state_->options.isa), name(format.key.spec.bits),
                     name(format.value.spec.bits));
}

}  // namespace kvq
