// What a cache holds as plain rows in device memory, for software that cannot read packed pages.
#pragma once

#include <cuda_runtime_api.h>

#include "kvq/attention/cuda/decode.h"
#include "kvq/attention/cuda/dequantize_params.h"
#include "kvq/base/status.h"
#include "kvq/codec/page_format.h"

namespace kvq::cuda {

class Dequantize {
 public:
  // For the current device.
  static Result<Dequantize> create(const PageFormat& format, int kv_heads);

  // All tokens that the batch's lengths count, from position 0 on; query and output are not used.
  //   most_tokens  at least the tokens of the longest sequence
  Status run(const DecodeBatch& caches, std::int64_t most_tokens, const PlainRows& rows,
             cudaStream_t stream) const;

 private:
  Dequantize() = default;

  DequantizeParams params_{};  // what does not change between launches
};

}  // namespace kvq::cuda
