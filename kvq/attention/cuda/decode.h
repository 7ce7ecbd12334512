// Decode attention on a CUDA device: one query token of each sequence attends to packed pages and
// exact rows in device memory. Codes are read where they lie.
//
//   output[s, h] = sum_p softmax_p(scale * query[s, h] . k[s, p, h / G]) v[s, p, h / G]
//
// A launch allocates nothing, waits for nothing and reads all lengths on the device: it can be
// captured in a graph and replayed while sequences grow.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <string>

#include "kvq/attention/attention.h"
#include "kvq/attention/cuda/decode_params.h"
#include "kvq/base/status.h"
#include "kvq/codec/page_format.h"

namespace kvq::cuda {

// Pointers are to device memory. A launch may read lengths and all tables while the kernel before
// it in the stream still runs: a kernel that writes them must not be the one right before.
struct DecodeBatch {
  int sequences = 0;
  const void* query = nullptr;  // [sequences, query_heads, head_dim], after RoPE, 16-byte aligned
  void* output = nullptr;       // likewise
  NumberType query_type = NumberType::kFloat32;
  NumberType output_type = NumberType::kFloat32;

  // Page i of sequence s and kv head h starts at
  //   pages + page_table[s * table_stride + i] * page_stride + h * head_stride,
  // strides in bytes, multiples of 128 as `pages` is; [sequences, table_stride].
  const std::byte* pages = nullptr;
  const std::int32_t* page_table = nullptr;
  std::int64_t page_stride = 0;
  std::int64_t head_stride = 0;
  std::int32_t table_stride = 0;
  // The same holds for the pages: the first ones are fetched while the kernel before still runs.
  bool pages_settled = false;

  const SequenceLength* lengths = nullptr;  // [sequences]
  // Unrotated fp16 rows, each 16-byte aligned; null where every length's count is 0.
  RowBlock sinks{};
  RowBlock tail{};
  // Not null: exact rows lie in blocks (decode_params.h), and a sequence's tail begins with the
  // tokens of page `lengths.pages`; [.., row_blocks_stride].
  const std::int32_t* row_blocks = nullptr;
  std::int32_t row_blocks_stride = 0;
  // Not null: sequence s reads row tables[s] of page_table and of row_blocks, so that queries of
  // one sequence can each read as much of it as their positions see; [sequences].
  const std::int32_t* tables = nullptr;
};

struct DecodeOptions {
  int max_sequences = 0;
  // The same bits whenever the same batch runs on the same device: pages are not handed to whoever
  // is free. Up to 10 % slower.
  bool deterministic = false;
};

class Decode {
 public:
  // For the current device. shape.scale as in Attention.
  static Result<Decode> create(const AttentionShape& shape, const PageFormat& format,
                               const DecodeOptions& options);

  // Device memory for run(), 128-byte aligned; launches that may overlap need one each.
  std::size_t workspace_bytes() const;
  // Once for a workspace, before its first run().
  Status initialize(void* workspace, cudaStream_t stream) const;

  Status run(const DecodeBatch& batch, void* workspace, cudaStream_t stream) const;

  // For example "cuda/fixed k4v2 d128" or "cuda/any k5v3 d128".
  const std::string& kernel_name() const { return name_; }

 private:
  Decode() = default;

  DecodeParams params_{};  // what does not change between launches
  const void* kernel_ = nullptr;
  int max_sequences_ = 0;
  int blocks_ = 0;
  int warps_ = 0;  // of a block
  bool overlaps_launches_ = false;
  std::string name_;
};

}  // namespace kvq::cuda
