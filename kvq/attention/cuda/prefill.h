// Prefill attention on a CUDA device: the newest tokens of each sequence, a chunk, attend to all
// tokens up to themselves, in packed pages and exact rows in device memory (cache/view.h says which
// position is read from where).
//
//   output[t, h] = sum_p softmax_p(scale * query[t, h] . k[p, h / G]) v[p, h / G],  p <= position
//   of t
//
// A launch allocates nothing, waits for nothing and reads all lengths on the device. The result
// does not depend on how often it is run, nor on the other sequences of a batch.
#pragma once

#include <cuda_runtime_api.h>

#include <string>

#include "kvq/attention/attention.h"
#include "kvq/attention/cuda/prefill_params.h"
#include "kvq/base/status.h"
#include "kvq/codec/page_format.h"

namespace kvq::cuda {

// Pointers are to device memory, 16-byte aligned.
struct PrefillBatch {
  int sequences = 0;
  int tokens = 0;               // rows of query and output, no fewer than query_starts[sequences]
  const void* query = nullptr;  // [tokens, query_heads, head_dim], after RoPE
  void* output = nullptr;       // likewise
  NumberType query_type = NumberType::kFloat32;
  NumberType output_type = NumberType::kFloat32;
  // The chunk of sequence s is rows query_starts[s] .. query_starts[s + 1] - 1, none if they are
  // equal: [sequences + 1], ascending.
  const std::int32_t* query_starts = nullptr;
  const ChunkLength* lengths = nullptr;  // [sequences]

  // Page i of sequence s and kv head h starts at
  //   pages + page_table[s * table_stride + i] * page_stride + h * head_stride,
  // strides in bytes, multiples of 128 as `pages` is; [sequences, table_stride].
  const std::byte* pages = nullptr;
  const std::int32_t* page_table = nullptr;
  std::int64_t page_stride = 0;
  std::int64_t head_stride = 0;
  std::int32_t table_stride = 0;

  // Unrotated fp16 rows, strides in multiples of 8; row 0 of the tail is at position tail_first.
  // Null where no sequence has any.
  RowBlock sinks{};
  RowBlock tail{};
  // Not null: exact rows lie in blocks (decode_params.h), and tail_first is the position of the
  // first row block's row 0; [sequences, row_blocks_stride].
  const std::int32_t* row_blocks = nullptr;
  std::int32_t row_blocks_stride = 0;
};

struct PrefillOptions {
  int sinks = 0;  // S and W of the cache
  int window = 0;
  bool exact_prefill = false;  // as in AttentionOptions
};

class Prefill {
 public:
  // For the current device. shape.scale as in Attention.
  static Result<Prefill> create(const AttentionShape& shape, const PageFormat& format,
                                const PrefillOptions& options);

  Status run(const PrefillBatch& batch, cudaStream_t stream) const;

  // For example "cuda/prefill k4v2 d128".
  const std::string& kernel_name() const { return name_; }

 private:
  Prefill() = default;

  PrefillParams params_{};  // what does not change between launches
  const void* kernel_ = nullptr;
  int threads_ = 0;    // of a block
  int tile_rows_ = 0;  // query rows of a block
  int shared_bytes_ = 0;
  std::string name_;
};

}  // namespace kvq::cuda
