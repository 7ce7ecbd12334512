#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <string>
#include <vector>

#include "kvq/codec/spec.h"
#include "python/bindings/errors.h"
#include "python/bindings/module.h"
#include "python/bindings/paged_cache.h"

namespace kvq::python {
namespace {

namespace nb = nanobind;
using namespace nb::literals;

using Integers = nb::ndarray<const std::int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Table = nb::ndarray<const std::int32_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using BlockArray = nb::ndarray<std::uint8_t, nb::ndim<4>, nb::device::cpu>;

std::span<const std::int32_t> span_of(const Integers& array) {
  return {array.data(), array.shape(0)};
}

PagedCache create(const std::vector<std::string>& specs, int query_heads, int kv_heads,
                  int head_dim, int slots, int window) {
  std::vector<LayerSpec> layers;
  layers.reserve(specs.size());
  for (const std::string& spec : specs) layers.push_back(take(parse_layer_spec(spec)));
  return take(PagedCache::create(layers, {.query_heads = query_heads,
                                          .kv_heads = kv_heads,
                                          .head_dim = head_dim,
                                          .slots = slots,
                                          .window = window}));
}

// [blocks, kv_heads, 64, page bytes / 64] uint8, a block's pages side by side.
Blocks blocks_of(const BlockArray& array, const PagedCache& cache, int layer) {
  const std::size_t page = cache.page_bytes(layer);
  const auto heads = static_cast<std::size_t>(cache.shape().kv_heads);
  if (array.shape(1) != heads || array.shape(2) != kPageTokens ||
      array.shape(2) * array.shape(3) != page) {
    take(fail("blocks: expected the shape [blocks, {}, {}, {}], found [{}, {}, {}, {}]", heads,
              kPageTokens, page / kPageTokens, array.shape(0), array.shape(1), array.shape(2),
              array.shape(3)));
  }
  if (array.stride(3) != 1 || array.stride(2) != static_cast<std::int64_t>(array.shape(3)) ||
      array.stride(1) != static_cast<std::int64_t>(page)) {
    take(fail("blocks: expected the pages of a block side by side"));
  }
  return {.data = reinterpret_cast<std::byte*>(array.data()),
          .count = static_cast<std::int64_t>(array.shape(0)),
          .stride = array.stride(0)};
}

void check_heads(const Rows& rows, const char* name, int heads, int head_dim) {
  if (rows.heads == heads && rows.head_dim == head_dim && rows.batch == 1) return;
  take(fail("{}: expected the shape [rows, {}, {}], found {} heads of {} numbers", name, heads,
            head_dim, rows.heads, rows.head_dim));
}

void step(PagedCache& cache, int layer, const BlockArray& block_array, const Array& key_array,
          const Array& value_array, const Array& query_array, const OutputArray& output_array,
          const Integers& starts, const Integers& lengths, const Integers& slots,
          const Integers& firsts, const Table& table, float scale) {
  if (layer < 0 || layer >= cache.layers()) {
    take(fail("layer: expected 0 to {}, found {}", cache.layers() - 1, layer));
  }
  const Blocks blocks = blocks_of(block_array, cache, layer);
  const Rows key = take(token_major_rows_of(key_array, "key"));
  const Rows value = take(token_major_rows_of(value_array, "value"));
  const Rows query = take(token_major_rows_of(query_array, "query"));
  const Rows output = take(token_major_rows_of(output_array, "output"));
  const PagedShape& shape = cache.shape();
  check_heads(key, "key", shape.kv_heads, shape.head_dim);
  check_heads(value, "value", shape.kv_heads, shape.head_dim);
  check_heads(query, "query", shape.query_heads, shape.head_dim);
  check_heads(output, "output", shape.query_heads, shape.head_dim);
  if (value.tokens < key.tokens || output.tokens < query.tokens) {
    take(
        fail("value, output: expected as many rows as key and query, found {} and {} for {} and {}",
             value.tokens, output.tokens, key.tokens, query.tokens));
  }
  const PagedStep requests{.starts = span_of(starts),
                           .lengths = span_of(lengths),
                           .slots = span_of(slots),
                           .firsts = span_of(firsts),
                           .table = {table.data(), table.size()},
                           .columns = static_cast<std::int64_t>(table.shape(1))};
  Status done;
  {
    const nb::gil_scoped_release release;
    done = cache.step(layer, blocks, requests, key, value, query, output, scale);
  }
  take(done);
}

}  // namespace

void bind_paged(nb::module_& module) {
  nb::class_<PagedCache>(module, "PagedCache",
                         "Packed caches in blocks that another program hands out.")
      .def_static("create", &create, "specs"_a, "query_heads"_a, "kv_heads"_a, "head_dim"_a,
                  "slots"_a, "window"_a)
      .def_prop_ro("slot_bytes", &PagedCache::slot_bytes)
      .def("step", &step, "layer"_a, "blocks"_a, "key"_a, "value"_a, "query"_a, "output"_a,
           "starts"_a, "lengths"_a, "slots"_a, "firsts"_a, "table"_a, "scale"_a);
}

}  // namespace kvq::python
