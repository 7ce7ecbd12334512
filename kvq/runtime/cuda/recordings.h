// Sequences of launches that are recorded as CUDA graphs and replayed: at decode, launching a
// pass's hundreds of small kernels one by one takes longer than running them.
#pragma once

#include <functional>
#include <map>
#include <memory>

#include "kvq/cache/cuda/device.h"
#include "kvq/runtime/ops.h"

namespace kvq::cuda {

class Recordings {
 public:
  explicit Recordings(std::shared_ptr<Device> device) : device_(std::move(device)) {}
  Recordings(const Recordings&) = delete;
  Recordings& operator=(const Recordings&) = delete;
  ~Recordings() { clear(); }

  // The first call with a key runs `body` (which then may take memory), the second one records it,
  // others replay the recording.
  Status run(const RecordingKey& key, const std::function<Status()>& body);

  // Forgets everything: memory that recordings point to has changed.
  void clear();

 private:
  Status record(const std::function<Status()>& body, cudaGraphExec_t& recording) const;

  std::shared_ptr<Device> device_;
  std::map<RecordingKey, cudaGraphExec_t> recordings_;  // null: the key came once
};

}  // namespace kvq::cuda
