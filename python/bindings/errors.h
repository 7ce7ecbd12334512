// Errors of the core as Python exceptions.
#pragma once

#include <nanobind/nanobind.h>

#include <utility>

#include "kvq/base/status.h"

namespace kvq::python {

// The value, or a ValueError with the error's message.
template <typename T>
T take(Result<T> result) {
  if (!result) throw nanobind::value_error(result.error().message.c_str());
  return std::move(result).value();
}

inline void take(const Status& status) {
  if (!status) throw nanobind::value_error(status.error().message.c_str());
}

}  // namespace kvq::python
