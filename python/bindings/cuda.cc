// Caches on a CUDA device. Tensors are described by plain numbers: what DLPack asks of torch takes
// longer than all that is done here in a decode step.
#include <nanobind/stl/array.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <array>
#include <bit>
#include <string>
#include <tuple>
#include <vector>

#include "kvq/codec/spec.h"
#include "python/bindings/cuda_layer_cache.h"
#include "python/bindings/errors.h"
#include "python/bindings/module.h"

namespace kvq::python {
namespace {

namespace nb = nanobind;

// Address, kind of numbers (Number), shape [batch, heads, tokens, head_dim], strides in numbers.
using Description =
    std::tuple<std::uintptr_t, int, std::array<std::int64_t, 4>, std::array<std::int64_t, 4>>;

Rows rows_of(const Description& description, const char* name) {
  const auto& [address, number, shape, strides] = description;
  if (shape[3] > 1 && strides[3] != 1) {
    take(fail("{}: expected the numbers of a head side by side, found a stride of {}", name,
              strides[3]));
  }
  Rows rows;
  rows.data = std::bit_cast<std::byte*>(address);
  rows.number = static_cast<Number>(number);
  rows.batch = static_cast<int>(shape[0]);
  rows.heads = static_cast<int>(shape[1]);
  rows.tokens = static_cast<int>(shape[2]);
  rows.head_dim = static_cast<int>(shape[3]);
  rows.batch_stride = strides[0];
  rows.head_stride = strides[1];
  rows.token_stride = strides[2];
  return rows;
}

cudaStream_t stream_of(std::uintptr_t stream) { return std::bit_cast<cudaStream_t>(stream); }

CudaLayerCache create(std::shared_ptr<CudaMemory> memory, const std::string& spec, int kv_heads,
                      int head_dim, int sinks, int window, bool exact_prefill) {
  return take(
      CudaLayerCache::create(std::move(memory), take(parse_layer_spec(spec)), kv_heads, head_dim,
                             {.sinks = sinks, .window = window, .exact_prefill = exact_prefill}));
}

void append(CudaLayerCache& cache, const Description& key, const Description& value,
            const std::vector<int>& counts, std::uintptr_t stream) {
  take(cache.append(rows_of(key, "key"), rows_of(value, "value"), counts, stream_of(stream)));
}

void attend(CudaLayerCache& cache, const Description& query, std::uintptr_t output, float scale,
            const std::vector<int>& counts, std::uintptr_t stream) {
  take(cache.attend(rows_of(query, "query"), std::bit_cast<std::byte*>(output), scale, counts,
                    stream_of(stream)));
}

void append_and_attend(CudaLayerCache& cache, const Description& key, const Description& value,
                       const Description& query, std::uintptr_t output, float scale,
                       const std::vector<int>& counts, std::uintptr_t stream) {
  append(cache, key, value, counts, stream);
  attend(cache, query, output, scale, counts, stream);
  cache.forget_long_chunk();
}

void attend_step(const CudaLayerCache& cache, const Description& key, const Description& value,
                 const Description& query, std::uintptr_t output, float scale,
                 const std::vector<int>& /*counts*/, std::uintptr_t stream) {
  take(cache.attend_step(rows_of(key, "key"), rows_of(value, "value"), rows_of(query, "query"),
                         std::bit_cast<std::byte*>(output), scale, stream_of(stream)));
}

nb::dict bytes(const CudaLayerCache& cache) {
  const ByteCount count = cache.bytes();
  nb::dict result;
  result["pages"] = count.pages;
  result["exact"] = count.exact;
  result["allocated"] = count.allocated;
  return result;
}

}  // namespace

void bind_cuda(nb::module_& module) {
  module.attr("has_cuda") = true;
  nb::class_<CudaMemory>(module, "CudaMemory",
                         "Memory of a CUDA device for the layers of a cache and its forks.")
      .def_static(
          "create",
          [](int device) {
            const DeviceGuard guard(device);
            return take(CudaMemory::create(device));
          },
          nb::arg("device"))
      .def_prop_ro(
          "bytes", [](const CudaMemory& memory) { return memory.arena()->bytes(); },
          "Taken from the device; what is free of it serves further tokens.");
  nb::class_<CudaLayerCache>(module, "CudaLayerCache",
                             "LayerCache in the memory of a CUDA device, on the caller's stream.")
      .def_static("create", &create, nb::arg("memory"), nb::arg("spec"), nb::arg("kv_heads"),
                  nb::arg("head_dim"), nb::arg("sinks"), nb::arg("window"),
                  nb::arg("exact_prefill"))
      .def_prop_ro("batch", &CudaLayerCache::batch, "Sequences; 0 before the first chunk.")
      .def_prop_ro("lengths", &CudaLayerCache::lengths, "Tokens of every sequence.")
      .def_prop_ro("kv_heads", [](const CudaLayerCache& cache) { return cache.spec().kv_heads; })
      .def_prop_ro("head_dim", [](const CudaLayerCache& cache) { return cache.spec().head_dim; })
      .def("append", &append, nb::arg("key"), nb::arg("value"), nb::arg("counts"),
           nb::arg("stream"))
      .def("attend", &attend, nb::arg("query"), nb::arg("output"), nb::arg("scale"),
           nb::arg("counts"), nb::arg("stream"))
      .def("append_and_attend", &append_and_attend, nb::arg("key"), nb::arg("value"),
           nb::arg("query"), nb::arg("output"), nb::arg("scale"), nb::arg("counts"),
           nb::arg("stream"))
      .def(
          "begin_step",
          [](CudaLayerCache& cache, std::uintptr_t stream) {
            return nb::tuple(nb::cast(take(cache.begin_step(stream_of(stream)))));
          },
          nb::arg("stream"))
      .def("attend_step", &attend_step, nb::arg("key"), nb::arg("value"), nb::arg("query"),
           nb::arg("output"), nb::arg("scale"), nb::arg("counts"), nb::arg("stream"))
      .def(
          "read",
          [](CudaLayerCache& cache, const Description& key, const Description& value,
             std::uintptr_t stream) {
            take(cache.read(rows_of(key, "key"), rows_of(value, "value"), stream_of(stream)));
          },
          nb::arg("key"), nb::arg("value"), nb::arg("stream"))
      .def("bytes", &bytes)
      .def(
          "kernel_name",
          [](const CudaLayerCache& cache, int query_heads) {
            return take(cache.kernel_name(query_heads));
          },
          nb::arg("query_heads"), "Of decode attention.")
      .def(
          "select",
          [](CudaLayerCache& cache, const std::vector<int>& source, std::uintptr_t stream) {
            return take(cache.select(source, stream_of(stream)));
          },
          nb::arg("source"), nb::arg("stream"))
      .def(
          "reorder",
          [](CudaLayerCache& cache, const std::vector<int>& source, std::uintptr_t stream) {
            take(cache.reorder(source, stream_of(stream)));
          },
          nb::arg("source"), nb::arg("stream"))
      .def(
          "truncate",
          [](CudaLayerCache& cache, const std::vector<std::int64_t>& lengths,
             std::uintptr_t stream) { take(cache.truncate(lengths, stream_of(stream))); },
          nb::arg("lengths"), nb::arg("stream"));
}

}  // namespace kvq::python
