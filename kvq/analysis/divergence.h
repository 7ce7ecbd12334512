// The next-token distributions of a 16-bit pass, kept while other passes are compared with them.
#pragma once

#include <span>
#include <vector>

#include "kvq/base/status.h"
#include "kvq/base/thread_pool.h"

namespace kvq {

class ReferenceOutput {
 public:
  ReferenceOutput(int vocabulary, ThreadPool& threads)
      : vocabulary_(vocabulary), threads_(threads) {}

  //   logits  [rows, vocabulary]
  void keep(std::span<const float> logits);

  // KL divergence (reference || logits) of each row, nats; valid until the next call. Logits that
  // are not finite are an error.
  //   logits  as many as were kept
  Result<std::span<const float>> divergences(std::span<const float> logits);

 private:
  std::size_t offset(int row) const {
    return static_cast<std::size_t>(row) * static_cast<std::size_t>(vocabulary_);
  }

  int vocabulary_;
  ThreadPool& threads_;
  std::vector<float> logits_;         // [rows, vocabulary]
  std::vector<float> probabilities_;  // [rows, vocabulary]
  std::vector<double> log_sums_;      // [rows]
  std::vector<float> divergences_;    // [rows]
};

}  // namespace kvq
