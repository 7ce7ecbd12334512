// Packing on a CUDA device: fp16 rows in device memory to the bytes that pack_page() writes.
//
// A launch packs many pages, allocates nothing, waits for nothing and reads its jobs on the device:
// it can be captured in a graph and replayed while what must be packed changes. The arithmetic is
// that of codec/fit.h, to the last bit. A launch that finds no jobs takes about a microsecond:
// layers of one format are best packed by one launch.
#pragma once

#include <cuda_runtime_api.h>

#include "kvq/base/status.h"
#include "kvq/codec/cuda/pack_params.h"
#include "kvq/codec/page_format.h"

namespace kvq::cuda {

// Pointers are to device memory.
struct PackBatch {
  const PackJob* jobs = nullptr;  // [max_jobs]
  // How many of the jobs there are, read on the device; null: max_jobs. A launch that finds none
  // ends at once, jobs without a page cost one read each.
  const std::int32_t* job_count = nullptr;
  std::int32_t max_jobs = 0;

  // From kv head to kv head and from token to token of a job's rows, in fp16 numbers, multiples of
  // 8; 0: rows are contiguous, [kv_heads, 64 tokens, head_dim].
  std::int64_t row_head_stride = 0;
  std::int64_t row_token_stride = 0;
  // From kv head to kv head of a job's pages, in bytes, a multiple of 128; 0: page_bytes.
  std::int64_t page_head_stride = 0;
};

class Packer {
 public:
  // For the current device.
  static Result<Packer> create(const PageFormat& format, int kv_heads);

  Status run(const PackBatch& batch, cudaStream_t stream) const;

 private:
  Packer() = default;

  Status choose_launch();

  PackParams params_{};  // what does not change between launches
  std::int64_t page_bytes_ = 0;
  int multiprocessors_ = 0;
  int threads_ = 0;  // of a block
  int blocks_ = 0;   // that run at the same time
  int shared_bytes_ = 0;
};

}  // namespace kvq::cuda
