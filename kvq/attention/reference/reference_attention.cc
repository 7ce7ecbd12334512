#include "kvq/attention/reference/reference_attention.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>

#include "kvq/attention/boundary.h"
#include "kvq/codec/pack.h"

namespace kvq {
namespace {

// The rows of one kv head as floats, by position: packed ones as their pages stand for them.
struct HeadRows {
  std::vector<float> packed_key;  // [pages * 64, head_dim], row i at position S + i
  std::vector<float> packed_value;
  const LayerView* view;
  int head;

  HeadRows(const LayerView& layer, int kv_head) : view(&layer), head(kv_head) {
    const std::size_t page_size = std::size_t{kPageTokens} * layer.format->head_dim();
    packed_key.resize(layer.pages.size() * page_size);
    packed_value.resize(layer.pages.size() * page_size);
    for (std::size_t i = 0; i < layer.pages.size(); ++i) {
      unpack_page(*layer.format, layer.pages[i].data + kv_head * layer.pages[i].head_stride,
                  packed_key.data() + i * page_size, packed_value.data() + i * page_size);
    }
  }

  // Key (or value) `channel` of `position`, read from its page if position < boundary.
  double at(bool is_key, std::int64_t position, std::int64_t boundary, int channel) const {
    const int head_dim = view->format->head_dim();
    if (position >= view->sinks.count && position < boundary) {
      const std::int64_t row = position - view->sink_tokens;
      return (is_key ? packed_key : packed_value)[row * head_dim + channel];
    }
    const ExactRows& rows = position < view->sinks.count ? view->sinks : view->tail;
    const std::int64_t offset =
        head * rows.head_stride + (position - rows.first) * head_dim + channel;
    return to_float((is_key ? rows.key : rows.value)[offset]);
  }
};

// One query row against positions 0 .. position; query and output are [head_dim].
void attend(const HeadRows& rows, const float* query, double scale, std::int64_t position,
            std::int64_t boundary, double* output) {
  const int head_dim = rows.view->format->head_dim();
  std::vector<double> weight(position + 1);
  for (std::int64_t p = 0; p <= position; ++p) {
    double dot = 0;
    for (int c = 0; c < head_dim; ++c) dot += query[c] * rows.at(true, p, boundary, c);
    weight[p] = scale * dot;
  }
  const double maximum = *std::max_element(weight.begin(), weight.end());
  double sum = 0;
  for (double& w : weight) sum += w = std::exp(w - maximum);
  std::fill_n(output, head_dim, 0.0);
  for (std::int64_t p = 0; p <= position; ++p) {
    for (int c = 0; c < head_dim; ++c) {
      output[c] += weight[p] / sum * rows.at(false, p, boundary, c);
    }
  }
}

}  // namespace

std::vector<double> reference_attention(const AttentionShape& shape, const AttentionItem& item,
                                        bool exact_prefill) {
  const LayerView& view = *item.view;
  const int heads_per_kv_head = shape.query_heads / shape.kv_heads;
  std::vector<double> output(std::size_t(item.tokens) * shape.query_heads * shape.head_dim);
  for (int kv_head = 0; kv_head < shape.kv_heads; ++kv_head) {
    const HeadRows rows(view, kv_head);
    for (int token = 0; token < item.tokens; ++token) {
      const std::int64_t position = view.length - item.tokens + token;
      const std::int64_t boundary = query_boundary(view, position, exact_prefill);
      for (int g = 0; g < heads_per_kv_head; ++g) {
        const std::size_t row =
            std::size_t(token) * shape.query_heads + kv_head * heads_per_kv_head + g;
        attend(rows, item.query + row * shape.head_dim, shape.scale, position, boundary,
               output.data() + row * shape.head_dim);
      }
    }
  }
  return output;
}

}  // namespace kvq
