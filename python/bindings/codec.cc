// Formats, and rows to packed pages and back.
#include "kvq/codec/pack.h"

#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>

#include <atomic>
#include <cstring>
#include <memory>
#include <new>
#include <vector>

#include "kvq/codec/spec.h"
#include "python/bindings/errors.h"
#include "python/bindings/module.h"
#include "python/bindings/tensor.h"
#include "python/bindings/workers.h"

namespace kvq::python {
namespace {

namespace nb = nanobind;

using ByteArray = nb::ndarray<nb::numpy, std::uint8_t, nb::ndim<3>, nb::c_contig>;
using FloatArray = nb::ndarray<nb::numpy, float, nb::ndim<3>, nb::c_contig>;

// Memory of the size, aligned as pages are, that a capsule owns.
struct OwnedBytes {
  explicit OwnedBytes(std::size_t bytes)
      : data(static_cast<std::byte*>(::operator new (bytes, std::align_val_t{kPageAlignment}))) {
    owner = nb::capsule(data, [](void* memory) noexcept {
      ::operator delete (memory, std::align_val_t{kPageAlignment});
    });
  }
  std::byte* data;
  nb::capsule owner;
};

PageFormat format_of(const std::string& spec, int head_dim) {
  return take(PageFormat::create(take(parse_layer_spec(spec)), head_dim));
}

// One page's rows of one head as fp16, [64, head_dim]; false if one is not finite there.
bool half_rows(const Rows& rows, int head, int first, std::vector<float>& floats,
               std::vector<Half>& halves) {
  Rows page = rows;
  page.data = rows.row(0, head, first);
  page.heads = 1;
  page.tokens = kPageTokens;
  gather(page, 0, {}, floats.data());
  to_half(floats.data(), halves.data(), halves.size());
  unsigned bad = 0;
  for (const Half half : halves) bad |= (half.bits & 0x7c00U) == 0x7c00U ? 1U : 0U;
  return bad == 0;
}

void check_pack(const Rows& key, const Rows& value) {
  if (key.batch != 1 || value.batch != 1) {
    take(fail("key, value: expected the shape [kv_heads, tokens, head_dim]"));
  }
  if (key.heads != value.heads || key.tokens != value.tokens || key.head_dim != value.head_dim) {
    take(fail("value: expected the shape of key, [{}, {}, {}], found [{}, {}, {}]", key.heads,
              key.tokens, key.head_dim, value.heads, value.tokens, value.head_dim));
  }
  if (key.tokens % kPageTokens != 0) {
    take(fail("key: expected a multiple of {} tokens, found {}", kPageTokens, key.tokens));
  }
}

ByteArray pack(const Array& key_array, const Array& value_array, const std::string& spec) {
  const Rows key = take(rows_of(key_array, "key"));
  const Rows value = take(rows_of(value_array, "value"));
  check_pack(key, value);
  const PageFormat format = format_of(spec, key.head_dim);
  const Isa isa = take(default_isa());
  const int pages = key.tokens / kPageTokens;
  OwnedBytes packed(static_cast<std::size_t>(key.heads) * static_cast<std::size_t>(pages) *
                    format.page_bytes);
  std::atomic<bool> finite{true};
  {
    const nb::gil_scoped_release release;
    Workers& workers = Workers::instance();
    const auto held = workers.lock();
    workers.threads().run(key.heads * pages, [&](int task, int) {
      const auto numbers = static_cast<std::size_t>(kPageTokens * key.head_dim);
      std::vector<float> floats(numbers);
      std::vector<Half> keys(numbers);
      std::vector<Half> values(numbers);
      const int first = task % pages * kPageTokens;
      if (!half_rows(key, task / pages, first, floats, keys) ||
          !half_rows(value, task / pages, first, floats, values)) {
        finite = false;
        return;
      }
      pack_page(format, keys.data(), values.data(),
                packed.data + static_cast<std::size_t>(task) * format.page_bytes, isa);
    });
  }
  if (!finite) take(fail("key, value: expected finite numbers within +-{}", kHalfMax));
  return {packed.data,
          {static_cast<std::size_t>(key.heads), static_cast<std::size_t>(pages), format.page_bytes},
          packed.owner};
}

std::tuple<FloatArray, FloatArray> unpack(
    const nb::ndarray<const std::uint8_t, nb::ndim<3>, nb::c_contig, nb::device::cpu>& packed,
    const std::string& spec, int head_dim) {
  const PageFormat format = format_of(spec, head_dim);
  if (packed.shape(2) != format.page_bytes) {
    take(fail("pages: expected pages of {} bytes, found {}", format.page_bytes, packed.shape(2)));
  }
  const std::size_t heads = packed.shape(0);
  const std::size_t pages = packed.shape(1);
  const std::size_t page_numbers = kPageTokens * static_cast<std::size_t>(head_dim);
  OwnedBytes key(heads * pages * page_numbers * sizeof(float));
  OwnedBytes value(heads * pages * page_numbers * sizeof(float));
  {
    const nb::gil_scoped_release release;
    Workers& workers = Workers::instance();
    const auto held = workers.lock();
    workers.threads().run(static_cast<int>(heads * pages), [&](int task, int) {
      const auto page = static_cast<std::size_t>(task);
      // Callers' arrays are not aligned as pages must be.
      struct Free {
        void operator()(std::byte* memory) const {
          ::operator delete (memory, std::align_val_t{kPageAlignment});
        }
      };
      const std::unique_ptr<std::byte, Free> aligned(static_cast<std::byte*>(
          ::operator new (format.page_bytes, std::align_val_t{kPageAlignment})));
      std::memcpy(aligned.get(), packed.data() + page * format.page_bytes, format.page_bytes);
      unpack_page(format, aligned.get(), reinterpret_cast<float*>(key.data) + page * page_numbers,
                  reinterpret_cast<float*>(value.data) + page * page_numbers);
    });
  }
  const std::size_t tokens = pages * kPageTokens;
  const auto channels = static_cast<std::size_t>(head_dim);
  return {FloatArray(key.data, {heads, tokens, channels}, key.owner),
          FloatArray(value.data, {heads, tokens, channels}, value.owner)};
}

}  // namespace

void bind_codec(nb::module_& module) {
  module.attr("PAGE_TOKENS") = kPageTokens;
  module.def(
      "normalize_spec",
      [](const std::string& spec) { return to_string(take(parse_layer_spec(spec))); },
      nb::arg("spec"),
      "The shortest text that means the same format; ValueError if it means none.");
  module.def(
      "page_bytes",
      [](const std::string& spec, int head_dim) { return format_of(spec, head_dim).page_bytes; },
      nb::arg("spec"), nb::arg("head_dim"),
      "Bytes of a packed page: 64 tokens of one kv head, keys and values.");
  module.def(
      "effective_bits",
      [](const std::string& spec, int head_dim) {
        return format_of(spec, head_dim).effective_bits();
      },
      nb::arg("spec"), nb::arg("head_dim"),
      "Stored bits of a cached number, scales, centers and padding included.");
  module.def("pack", &pack, nb::arg("key"), nb::arg("value"), nb::arg("spec"));
  module.def("unpack", &unpack, nb::arg("pages"), nb::arg("spec"), nb::arg("head_dim"));
}

}  // namespace kvq::python
