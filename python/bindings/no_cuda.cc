#include "python/bindings/module.h"

namespace kvq::python {

void bind_cuda(nanobind::module_& module) { module.attr("has_cuda") = false; }

}  // namespace kvq::python
