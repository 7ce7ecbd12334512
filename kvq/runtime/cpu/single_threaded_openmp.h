// Keeps oneDNN, which is built on OpenMP, on the calling thread.
#pragma once

#include <omp.h>

namespace kvq {

// While it lives, OpenMP regions started by this thread have one thread. The setting belongs to the
// thread, so a host program's own OpenMP code is not affected.
class SingleThreadedOpenMp {
 public:
  SingleThreadedOpenMp() : threads_(omp_get_max_threads()) { omp_set_num_threads(1); }
  ~SingleThreadedOpenMp() { omp_set_num_threads(threads_); }
  SingleThreadedOpenMp(const SingleThreadedOpenMp&) = delete;
  SingleThreadedOpenMp& operator=(const SingleThreadedOpenMp&) = delete;

 private:
  int threads_;
};

}  // namespace kvq
