// The parts of the extension module.
#pragma once

#include <nanobind/nanobind.h>

namespace kvq::python {

void bind_codec(nanobind::module_& module);
void bind_cache(nanobind::module_& module);
// Sets has_cuda; without CUDA nothing else.
void bind_cuda(nanobind::module_& module);
void bind_paged(nanobind::module_& module);
void bind_plans(nanobind::module_& module);

}  // namespace kvq::python
