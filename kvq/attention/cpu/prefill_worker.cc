#include "kvq/attention/cpu/prefill_worker.h"

#include <algorithm>

#include "kvq/attention/softmax_state.h"
#include "kvq/codec/hadamard.h"

namespace kvq {
namespace {

// Query rows that go through scores, softmax and output together: a multiple of every kernel's
// register rows, few enough that their scores stay in L1 (12 KiB) beside the tiles.
constexpr int kPassRows = 48;

}  // namespace

PrefillWorker::PrefillWorker(const AttentionShape& shape, Isa isa, int max_rows)
    : shape_(shape),
      isa_(isa),
      kernels_(&tile_kernels(isa)),
      group_(shape.query_heads / shape.kv_heads) {
  const std::size_t query_lines = lines_of(std::size_t(max_rows) * shape.head_dim);
  const std::size_t key_lines = lines_of(std::size_t(shape.head_dim) * kBlockRows);
  const std::size_t value_lines = lines_of(padded_channels(shape.head_dim) * kBlockRows);
  const std::size_t partial_lines = Partial::lines(max_rows, shape.head_dim);
  memory_.resize(2 * query_lines + key_lines + value_lines + lines_of(kPassRows * kBlockRows) +
                 lines_of(kPassRows) + 2 * partial_lines);
  FloatLine* at = memory_.data();
  const auto take = [&at](std::size_t lines) {
    FloatLine* first = at;
    at += lines;
    return first;
  };
  query_ = take(query_lines)->values;
  rotated_query_ = take(query_lines)->values;
  key_tile_ = take(key_lines)->values;
  value_tile_ = take(value_lines)->values;
  scores_ = take(lines_of(kPassRows * kBlockRows))->values;
  rescale_ = take(lines_of(kPassRows))->values;
  plain_ = Partial::make(take(partial_lines), max_rows);
  rotated_ = Partial::make(take(partial_lines), max_rows);
}

void PrefillWorker::load_queries(const QueryBlock& block, bool rotated) {
  const float factor = shape_.scale * kLog2E;
  const int row_length = group_ * shape_.head_dim;  // of one token
  const float* source = block.item->query +
                        std::size_t(block.first_token) * shape_.query_heads * shape_.head_dim +
                        block.kv_head * row_length;
  for (int token = 0; token < block.tokens; ++token) {
    float* row = query_ + token * row_length;
    for (int i = 0; i < row_length; ++i) row[i] = source[i] * factor;
    source += shape_.query_heads * shape_.head_dim;
  }
  if (!rotated) return;
  std::copy_n(query_, block.tokens * row_length, rotated_query_);
  hadamard_rows(rotated_query_, block.tokens * group_, shape_.head_dim, isa_);
}

void PrefillWorker::load_tiles(const QueryBlock& block, const Strip& strip) {
  if (strip.page != nullptr) {
    const std::byte* page = strip.page->data + block.kv_head * strip.page->head_stride;
    const PagePlan& plan = *block.plan;
    kernels_->expand(plan.key, page, 0, scratch_, key_tile_);
    for (int i = 0; i < plan.value.format.blocks; ++i) {
      kernels_->expand(plan.value, page, i, scratch_, value_tile_ + i * kBlockRows * kBlockRows);
    }
    return;
  }
  const ExactRows& rows = *strip.rows;
  const std::int64_t offset =
      block.kv_head * rows.head_stride + (strip.base - rows.first) * shape_.head_dim;
  kernels_->exact_key(rows.key + offset, shape_.head_dim, strip.count, key_tile_);
  kernels_->exact_value(rows.value + offset, shape_.head_dim, strip.count, value_tile_);
}

// The strip's tiles against the rows of the queries that see it.
void PrefillWorker::add_strip(const QueryBlock& block, const Strip& strip,
                              std::int64_t first_position, const Partial& partial) {
  const int head_dim = shape_.head_dim;
  const int stride = padded_channels(head_dim);
  const bool rotated = strip.page != nullptr && is_rotated(block.plan->key.format);
  const float* query = rotated ? rotated_query_ : query_;
  const int end_row = strip.end_query * group_;
  for (int row = strip.first_query * group_; row < end_row; row += kPassRows) {
    const int rows = std::min(kPassRows, end_row - row);
    int visible[kPassRows];
    for (int i = 0; i < rows; ++i) visible[i] = strip.visible(first_position + (row + i) / group_);
    const int columns = (visible[rows - 1] + 15) / 16 * 16;  // later rows see more
    kernels_->multiply(query + row * head_dim, head_dim, key_tile_, head_dim, columns, scores_,
                       kBlockRows, rows, nullptr);
    kernels_->softmax(scores_, visible, columns, rows, partial.maximum + row, partial.sum + row,
                      rescale_);
    for (int channel = 0; channel < head_dim; channel += kBlockRows) {
      kernels_->multiply(scores_, kBlockRows, value_tile_ + channel * kBlockRows, columns,
                         std::min(kBlockRows, head_dim - channel),
                         partial.output + row * stride + channel, stride, rows, rescale_);
    }
  }
}

void PrefillWorker::run(const QueryBlock& block, const StripList& list, int first_strip, int strips,
                        const Partial& plain, const Partial& rotated) {
  const int rows = block.tokens * group_;
  const PagePlan& plan = *block.plan;
  const Partial& paged = is_rotated(plan.value.format) ? rotated : plain;
  plain.clear(rows, shape_.head_dim);
  if (is_rotated(plan.value.format)) rotated.clear(rows, shape_.head_dim);
  load_queries(block, first_strip < list.pages() && is_rotated(plan.key.format));
  for (int i = first_strip; i < first_strip + strips; ++i) {
    const Strip strip = list.at(i);
    if (strip.first_query >= strip.end_query) continue;
    load_tiles(block, strip);
    add_strip(block, strip, list.first_position(), strip.page != nullptr ? paged : plain);
  }
}

}  // namespace kvq
