#include "kvq/runtime/cuda/recordings.h"

#include <utility>

namespace kvq::cuda {
namespace {

// One for each number of sequences that is decoded, and for each format.
constexpr std::size_t kMostRecordings = 256;

}  // namespace

Status Recordings::run(const RecordingKey& key, const std::function<Status()>& body) {
  const auto found = recordings_.find(key);
  if (found == recordings_.end()) {
    if (recordings_.size() >= kMostRecordings) clear();
    KVQ_RETURN_IF_ERROR(body());
    recordings_.emplace(key, nullptr);
    return {};
  }
  cudaGraphExec_t recording = found->second;
  if (recording == nullptr) {
    KVQ_RETURN_IF_ERROR(record(body, recording));
    recordings_[key] = recording;
  }
  return check(cudaGraphLaunch(recording, device_->stream()), "replay");
}

Status Recordings::record(const std::function<Status()>& body, cudaGraphExec_t& recording) const {
  KVQ_RETURN_IF_ERROR(check(
      cudaStreamBeginCapture(device_->stream(), cudaStreamCaptureModeThreadLocal), "recording"));
  const Status status = body();
  cudaGraph_t graph = nullptr;
  const cudaError_t error = cudaStreamEndCapture(device_->stream(), &graph);
  if (status && error == cudaSuccess) {
    const cudaError_t instantiated = cudaGraphInstantiate(&recording, graph, 0);
    cudaGraphDestroy(graph);
    return check(instantiated, "recording");
  }
  if (graph != nullptr) cudaGraphDestroy(graph);
  KVQ_RETURN_IF_ERROR(status);
  return check(error, "recording");
}

void Recordings::clear() {
  for (const auto& [key, recording] : recordings_) {
    if (recording != nullptr) cudaGraphExecDestroy(recording);
  }
  recordings_.clear();
}

}  // namespace kvq::cuda
