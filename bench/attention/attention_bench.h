// Speed and accuracy of decode attention on packed caches, against the read bandwidth measured in
// the same run.
//
// All formats take turns with a linear read of memory: a round is probe, every format once, probe.
// Buffers rotate so that nothing is found in the last-level cache. Rounds whose probe is disturbed
// are dropped; figures are medians of the rest.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "kvq/attention/attention.h"
#include "kvq/base/status.h"
#include "kvq/base/thread_pool.h"
#include "kvq/codec/spec.h"

namespace kvq {

struct AttentionBenchOptions {
  std::vector<LayerSpec> formats;
  int query_heads = 32;
  int kv_heads = 8;
  int head_dim = 128;
  std::int64_t tokens = 32768;  // of each sequence
  int batch = 1;                // sequences of a call
  int sinks = 4;
  int window = 64;
  int rounds = 30;
  Isa isa = Isa::kPortable;
  Precision precision = Precision::kDefault;
  // Pins the pool's threads and runs them with SCHED_FIFO priority while measuring, where allowed.
  bool real_time = true;
  // Bytes that each format's buffers rotate over, and that the probe reads. 0: 130 MB or four times
  // the last-level cache, whichever is more.
  std::int64_t rotation_bytes = 0;
  std::uint64_t seed = 1;
};

// The four kinds of data on which accuracy is checked.
enum class BenchData : std::uint8_t {
  kDiffuse,        // normal keys and queries: the softmax is spread over many tokens
  kPeaked,         // queries four times as long: few tokens carry the weight
  kLargeChannels,  // peaked, and five channels of the keys with mean 8 to 16, deviation 4
  kTwoChannels,    // two channels of the keys with deviation 25
};
inline constexpr int kBenchDataKinds = 4;
std::string_view name(BenchData data);

// Of the kernel against double precision on the values that the pages stand for: what the kernel
// adds to the error of quantization.
struct AttentionAccuracy {
  double relative_error = 0;  // ||output - expected|| / ||expected||, all heads
  double worst_head = 0;      // the largest of a single query head
};

struct AttentionBenchResult {
  LayerSpec spec;
  std::string kernel;
  double seconds = 0;  // median of a call
  double best_seconds = 0;
  std::int64_t packed_bytes = 0;  // read by a call: pages, parameters, exact rows of all sequences
  double gb_per_s = 0;            // packed_bytes / seconds
  double fraction_of_bandwidth = 0;
  std::array<AttentionAccuracy, kBenchDataKinds> accuracy;
};

struct AttentionBenchReport {
  double read_gb_per_s = 0;  // median of the probes of the rounds that count
  int rounds = 0;            // that count
  int dropped_rounds = 0;
  bool real_time = false;  // whether threads were pinned and given real-time priority
  std::vector<AttentionBenchResult> formats;
};

Result<AttentionBenchReport> bench_attention(const AttentionBenchOptions& options,
                                             ThreadPool& threads);

// The accuracy part alone, on `tokens` tokens.
Result<AttentionAccuracy> measure_accuracy(const AttentionBenchOptions& options,
                                           const LayerSpec& spec, BenchData data,
                                           std::int64_t tokens, ThreadPool& threads);

}  // namespace kvq
