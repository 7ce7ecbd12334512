// kvq._core: what the Python package calls of the C++ stages.
#include "python/bindings/module.h"

#include <nanobind/stl/string.h>

#include "kvq/base/cpu.h"
#include "python/bindings/errors.h"
#include "python/bindings/workers.h"

namespace nb = nanobind;

NB_MODULE(_core, module) {
  using namespace kvq::python;
  module.attr("VERSION") = KVQ_VERSION;
  module.def(
      "instruction_set", [] { return std::string(kvq::name(take(kvq::default_isa()))); },
      "The instruction set that kernels use: portable, avx2 or avx512.");
  module.def(
      "thread_count", [] { return Workers::instance().thread_count(); },
      "Threads that packing and attention use.");
  module.def(
      "set_thread_count",
      [](int count) {
        if (count < 1) throw nb::value_error("threads: expected at least 1");
        Workers::instance().set_thread_count(count);
      },
      nb::arg("count"), "Sets the number of threads, at least 1.");
  module.def(
      "start_threads",
      [] {
        const auto held = Workers::instance().lock();
        Workers::instance().threads();
      },
      "Starts the threads now: they may use the processors that the caller may use.");
  bind_codec(module);
  bind_cache(module);
  bind_cuda(module);
  bind_paged(module);
  bind_plans(module);
}
