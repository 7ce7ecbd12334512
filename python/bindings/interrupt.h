// Long computations that an interrupt (Ctrl-C) ends.
#pragma once

#include <nanobind/nanobind.h>

#include <atomic>
#include <chrono>
#include <future>

namespace kvq::python {

// What compute(interrupted) returns, computed on a thread of its own without the interpreter's lock
// while this one lets Python handle signals. When a handler raises, `interrupted` is set, and its
// exception is thrown once the computation has ended.
//   compute  touches no Python object; polls the std::atomic<bool>& that it gets
template <typename Compute>
auto run_interruptible(const Compute& compute) {
  namespace nb = nanobind;
  constexpr std::chrono::milliseconds kPoll{100};
  std::atomic<bool> interrupted{false};
  const nb::gil_scoped_release release;
  auto result = std::async(std::launch::async, [&] { return compute(interrupted); });
  while (result.wait_for(kPoll) == std::future_status::timeout) {
    const nb::gil_scoped_acquire acquire;
    if (PyErr_CheckSignals() == 0) continue;
    nb::python_error raised;
    interrupted = true;
    {
      const nb::gil_scoped_release wait;
      result.wait();
    }
    throw raised;
  }
  return result.get();
}

}  // namespace kvq::python
