#include "kvq/cache/test_model.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <random>

#include "kvq/codec/pack.h"

namespace kvq {
namespace {

constexpr int kParts = 2;  // keys, values

std::size_t index(std::int64_t value) { return static_cast<std::size_t>(value); }

}  // namespace

std::vector<Rows> make_rows(const CacheSpec& spec, std::int64_t tokens, unsigned seed) {
  std::vector<Rows> layers;
  for (std::size_t layer = 0; layer < spec.layers.size(); ++layer) {
    std::minstd_rand random(seed + 100 * static_cast<unsigned>(layer));
    std::normal_distribution<float> normal;
    Rows rows;
    const std::int64_t count = tokens * spec.kv_heads * spec.head_dim;
    for (std::int64_t i = 0; i < count; ++i) {
      rows.key.push_back(normal(random) * (i % spec.head_dim % 13 == 5 ? 8.0F : 1.0F));
      rows.value.push_back(normal(random) * 0.5F);
    }
    layers.push_back(std::move(rows));
  }
  return layers;
}

std::shared_ptr<CacheSpec> make_spec(const std::vector<std::string>& layers, int kv_heads,
                                     int head_dim, int sinks, int window) {
  auto spec = std::make_shared<CacheSpec>();
  for (const std::string& layer : layers) {
    spec->layers.push_back(parse_layer_spec(layer).value());
  }
  spec->kv_heads = kv_heads;
  spec->head_dim = head_dim;
  spec->sinks = sinks;
  spec->window = window;
  return spec;
}

Status append_rows(Sequence& sequence, const std::vector<Rows>& rows, std::int64_t first,
                   int tokens) {
  const std::int64_t width = std::int64_t{sequence.spec().kv_heads} * sequence.spec().head_dim;
  const std::int64_t offset = first * width;
  if (index(offset + tokens * width) > rows[0].key.size()) return fail("the test lacks rows");
  KVQ_RETURN_IF_ERROR(sequence.begin_chunk(tokens));
  for (std::size_t layer = 0; layer < rows.size(); ++layer) {
    KVQ_RETURN_IF_ERROR(sequence.append(static_cast<int>(layer), rows[layer].key.data() + offset,
                                        rows[layer].value.data() + offset));
  }
  return {};
}

void append_until(Sequence& sequence, const std::vector<Rows>& rows, std::int64_t end, int chunk) {
  while (sequence.length() < end) {
    const std::int64_t tokens = std::min<std::int64_t>(chunk, end - sequence.length());
    const Status status = append_rows(sequence, rows, sequence.length(), static_cast<int>(tokens));
    ASSERT_TRUE(status) << status.error().message;
  }
}

std::vector<float> visible_rows(const LayerView& view, std::int64_t position) {
  const int head_dim = view.format->head_dim();
  const std::int64_t boundary =
      std::max(view.tail.first, packed_boundary(position, view.sink_tokens, view.window));
  std::vector<float> out;
  std::vector<float> page(kPageTokens * index(head_dim));
  for (int part = 0; part < kParts; ++part) {
    for (int head = 0; head < view.kv_heads; ++head) {
      for (std::int64_t token = 0; token <= position; ++token) {
        const bool sink = token < view.sink_tokens;
        if (!sink && token < boundary) {
          const std::int64_t within = token - view.sink_tokens;
          const PageRef& ref = view.pages[index(within / kPageTokens)];
          const std::byte* data = ref.data + head * ref.head_stride;
          if (within % kPageTokens == 0) {
            unpack_page(*view.format, data, part == 0 ? page.data() : nullptr,
                        part == 0 ? nullptr : page.data());
          }
          const float* row = page.data() + within % kPageTokens * head_dim;
          out.insert(out.end(), row, row + head_dim);
          continue;
        }
        const ExactRows& exact = sink ? view.sinks : view.tail;
        const Half* row = (part == 0 ? exact.key : exact.value) + head * exact.head_stride +
                          (token - exact.first) * head_dim;
        for (int channel = 0; channel < head_dim; ++channel) out.push_back(to_float(row[channel]));
      }
    }
  }
  return out;
}

std::vector<std::int64_t> extent_runs(const LayerView& view) {
  const auto page_bytes = static_cast<std::int64_t>(view.format->page_bytes);
  std::vector<std::int64_t> runs;
  for (std::size_t page = 0; page < view.pages.size(); ++page) {
    const PageRef& ref = view.pages[page];
    const bool follows = page > 0 && ref.data == view.pages[page - 1].data + page_bytes &&
                         ref.head_stride == view.pages[page - 1].head_stride &&
                         runs.back() * page_bytes < ref.head_stride;
    if (!follows) runs.push_back(0);
    ++runs.back();
  }
  return runs;
}

ModelLayer::ModelLayer(const CacheSpec& spec, int layer)
    : spec_(spec),
      format_(PageFormat::create(spec.layers[index(layer)], spec.head_dim).value()),
      held_from_(spec.sinks) {}

std::int64_t ModelLayer::pages_end() const {
  return spec_.sinks + kPageTokens * static_cast<std::int64_t>(pages_.size());
}

ModelLayer::Page ModelLayer::pack(std::int64_t start) const {
  const auto head_dim = index(spec_.head_dim);
  std::vector<Half> key(kPageTokens * head_dim);
  std::vector<Half> value(kPageTokens * head_dim);
  // 128 bytes of room to align the page in.
  std::vector<std::byte> buffer(format_.page_bytes + kPageAlignment);
  void* aligned = buffer.data();
  std::size_t space = buffer.size();
  auto* page =
      static_cast<std::byte*>(std::align(kPageAlignment, format_.page_bytes, aligned, space));
  Page all;
  for (std::size_t head = 0; head < index(spec_.kv_heads); ++head) {
    for (std::size_t token = 0; token < kPageTokens; ++token) {
      const Half* row = rows_[index(start) + token].data() + head * head_dim;
      std::copy_n(row, head_dim, key.data() + token * head_dim);
      std::copy_n(row + index(spec_.kv_heads) * head_dim, head_dim,
                  value.data() + token * head_dim);
    }
    pack_page(format_, key.data(), value.data(), page, Isa::kPortable);
    all.insert(all.end(), page, page + format_.page_bytes);
  }
  return all;
}

void ModelLayer::unpack(const Page& page, std::int64_t start) {
  const auto head_dim = index(spec_.head_dim);
  std::vector<float> key(kPageTokens * head_dim);
  std::vector<float> value(kPageTokens * head_dim);
  for (std::size_t head = 0; head < index(spec_.kv_heads); ++head) {
    unpack_page(format_, page.data() + head * format_.page_bytes, key.data(), value.data());
    for (std::size_t token = 0; token < kPageTokens; ++token) {
      for (std::size_t channel = 0; channel < head_dim; ++channel) {
        Half* row = rows_[index(start) + token].data() + head * head_dim;
        const float k = key[token * head_dim + channel];
        const float v = value[token * head_dim + channel];
        row[channel] = to_half(std::clamp(k, -kHalfMax, kHalfMax));
        row[index(spec_.kv_heads) * head_dim + channel] =
            to_half(std::clamp(v, -kHalfMax, kHalfMax));
      }
    }
  }
}

void ModelLayer::drop_old_rows() {
  held_from_ = std::max(
      held_from_, std::min(packed_boundary(length(), spec_.sinks, spec_.window), pages_end()));
}

void ModelLayer::append(const Rows& rows, std::int64_t first, int tokens) {
  drop_old_rows();
  const std::int64_t position = length();
  const std::int64_t width = std::int64_t{spec_.kv_heads} * spec_.head_dim;
  for (std::int64_t token = first; token < first + tokens; ++token) {
    TokenRow row;
    for (const auto* source : {&rows.key, &rows.value}) {
      for (std::int64_t i = 0; i < width; ++i) {
        row.push_back(to_half((*source)[index(token * width + i)]));
      }
    }
    rows_.push_back(std::move(row));
  }
  while (pages_end() < packed_boundary(length() - 1, spec_.sinks, spec_.window)) {
    pages_.push_back(pack(pages_end()));
  }
  held_from_ = std::max(
      held_from_, std::min(packed_boundary(position, spec_.sinks, spec_.window), pages_end()));
}

void ModelLayer::truncate(std::int64_t length) {
  const std::int64_t wanted =
      length > 0 ? packed_boundary(length - 1, spec_.sinks, spec_.window) : spec_.sinks;
  while (pages_end() > wanted && pages_end() - kPageTokens >= held_from_) pages_.pop_back();
  while (!pages_.empty() && pages_end() > length) {
    const Page page = pages_.back();
    pages_.pop_back();
    if (pages_end() < length) unpack(page, pages_end());
    held_from_ = pages_end();
  }
  rows_.resize(index(length));
}

std::string ModelLayer::row_difference(const ExactRows& rows, const char* name) const {
  const int head_dim = spec_.head_dim;
  for (std::int64_t token = 0; token < rows.count; ++token) {
    const TokenRow& expected = rows_[index(rows.first + token)];
    for (int part = 0; part < kParts; ++part) {
      for (int head = 0; head < spec_.kv_heads; ++head) {
        const Half* found =
            (part == 0 ? rows.key : rows.value) + head * rows.head_stride + token * head_dim;
        if (!std::equal(found, found + head_dim,
                        expected.data() + (part * spec_.kv_heads + head) * head_dim)) {
          return fmt::format("{}: {} of head {}, token {} differs", name,
                             part == 0 ? "key" : "value", head, rows.first + token);
        }
      }
    }
  }
  return {};
}

std::string ModelLayer::difference(const LayerView& view) const {
  if (view.length != length()) return fmt::format("length {}, not {}", view.length, length());
  if (view.pages.size() != pages_.size()) {
    return fmt::format("{} pages, not {}", view.pages.size(), pages_.size());
  }
  for (std::size_t page = 0; page < pages_.size(); ++page) {
    for (int head = 0; head < spec_.kv_heads; ++head) {
      const PageRef& ref = view.pages[page];
      if (std::memcmp(ref.data + head * ref.head_stride,
                      pages_[page].data() + index(head) * format_.page_bytes,
                      format_.page_bytes) != 0) {
        return fmt::format("page {} of head {} differs", page, head);
      }
    }
  }
  const std::int64_t sinks = std::min<std::int64_t>(spec_.sinks, length());
  if (view.sinks.first != 0 || view.sinks.count != sinks) {
    return fmt::format("{} sinks, not {}", view.sinks.count, sinks);
  }
  const std::int64_t tail = std::max<std::int64_t>(length() - held_from_, 0);
  if (view.tail.first != held_from_ || view.tail.count != tail) {
    return fmt::format("tail of {} from {}, not {} from {}", view.tail.count, view.tail.first, tail,
                       held_from_);
  }
  if (auto sink = row_difference(view.sinks, "sinks"); !sink.empty()) return sink;
  return row_difference(view.tail, "tail");
}

ModelSequence::ModelSequence(const CacheSpec& spec) {
  for (std::size_t layer = 0; layer < spec.layers.size(); ++layer) {
    layers_.emplace_back(spec, static_cast<int>(layer));
  }
}

void ModelSequence::append(const std::vector<Rows>& rows, std::int64_t first, int tokens) {
  for (std::size_t i = 0; i < layers_.size(); ++i) layers_[i].append(rows[i], first, tokens);
}

void ModelSequence::drop_old_rows() {
  for (ModelLayer& layer : layers_) layer.drop_old_rows();
}

void ModelSequence::truncate(std::int64_t length) {
  for (ModelLayer& layer : layers_) layer.truncate(length);
}

std::string ModelSequence::difference(const Sequence& sequence) const {
  if (sequence.length() != length()) {
    return fmt::format("length {}, not {}", sequence.length(), length());
  }
  for (std::size_t i = 0; i < layers_.size(); ++i) {
    const std::string found = layers_[i].difference(sequence.view(static_cast<int>(i)));
    if (!found.empty()) return fmt::format("layer {}: {}", i, found);
  }
  return {};
}

}  // namespace kvq
