#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <optional>
#include <string>
#include <vector>

#include "kvq/cache/cache_spec.h"
#include "kvq/codec/spec.h"
#include "python/bindings/errors.h"
#include "python/bindings/layer_cache.h"
#include "python/bindings/module.h"

namespace kvq::python {
namespace {

namespace nb = nanobind;

KeptTokens kept_tokens(const std::optional<Array>& array, const Rows& rows) {
  return array ? take(KeptTokens::of(*array, rows.batch, rows.tokens)) : KeptTokens();
}

LayerCache create(const std::string& spec, int kv_heads, int head_dim, int sinks, int window,
                  bool exact_prefill) {
  return take(
      LayerCache::create(take(parse_layer_spec(spec)), kv_heads, head_dim,
                         {.sinks = sinks, .window = window, .exact_prefill = exact_prefill}));
}

void append(LayerCache& cache, const Array& key_array, const Array& value_array,
            const std::optional<Array>& kept_array) {
  const Rows key = take(rows_of(key_array, "key"));
  const Rows value = take(rows_of(value_array, "value"));
  const KeptTokens kept = kept_tokens(kept_array, key);
  const nb::gil_scoped_release release;
  take(cache.append(key, value, kept));
}

void attend(const LayerCache& cache, const Array& query_array, const OutputArray& output_array,
            float scale, const std::optional<Array>& kept_array) {
  const Rows query = take(rows_of(query_array, "query"));
  const Rows output = take(token_major_rows_of(output_array, "output"));
  const KeptTokens kept = kept_tokens(kept_array, query);
  const nb::gil_scoped_release release;
  take(cache.attend(query, kept, scale, output));
}

void append_and_attend(LayerCache& cache, const Array& key, const Array& value, const Array& query,
                       const OutputArray& output, float scale, const std::optional<Array>& kept) {
  append(cache, key, value, kept);
  attend(cache, query, output, scale, kept);
}

void read(const LayerCache& cache, const OutputArray& key_array, const OutputArray& value_array) {
  const Rows key = take(rows_of(key_array, "key"));
  const Rows value = take(rows_of(value_array, "value"));
  const nb::gil_scoped_release release;
  take(cache.read(key, value));
}

nb::dict bytes(const LayerCache& cache) {
  const ByteCount count = cache.bytes();
  nb::dict result;
  result["pages"] = count.pages;
  result["exact"] = count.exact;
  result["allocated"] = count.allocated;
  return result;
}

}  // namespace

void bind_cache(nb::module_& module) {
  nb::class_<LayerCache>(module, "LayerCache",
                         "Packed keys and values of one layer, for a batch of sequences.")
      .def_static("create", &create, nb::arg("spec"), nb::arg("kv_heads"), nb::arg("head_dim"),
                  nb::arg("sinks"), nb::arg("window"), nb::arg("exact_prefill"))
      .def_prop_ro("batch", &LayerCache::batch, "Sequences; 0 before the first chunk.")
      .def_prop_ro("lengths", &LayerCache::lengths, "Tokens of every sequence.")
      .def_prop_ro("kv_heads", [](const LayerCache& cache) { return cache.spec().kv_heads; })
      .def_prop_ro("head_dim", [](const LayerCache& cache) { return cache.spec().head_dim; })
      .def("append", &append, nb::arg("key"), nb::arg("value"), nb::arg("kept") = nb::none())
      .def("attend", &attend, nb::arg("query"), nb::arg("output"), nb::arg("scale"),
           nb::arg("kept") = nb::none())
      .def("append_and_attend", &append_and_attend, nb::arg("key"), nb::arg("value"),
           nb::arg("query"), nb::arg("output"), nb::arg("scale"), nb::arg("kept") = nb::none())
      .def("read", &read, nb::arg("key"), nb::arg("value"))
      .def("bytes", &bytes)
      .def(
          "select",
          [](const LayerCache& cache, const std::vector<int>& source) {
            return take(cache.select(source));
          },
          nb::arg("source"))
      .def(
          "reorder",
          [](LayerCache& cache, const std::vector<int>& source) { take(cache.reorder(source)); },
          nb::arg("source"))
      .def(
          "truncate",
          [](LayerCache& cache, const std::vector<std::int64_t>& lengths) {
            take(cache.truncate(lengths));
          },
          nb::arg("lengths"))
      .def("reset", &LayerCache::reset);
}

}  // namespace kvq::python
