// What the host hands to the packing kernel, by value.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kvq/codec/bits.h"

namespace kvq::cuda {

// Threads of a block: the fewer where a multiprocessor has room for four such blocks, the more
// where it has not or has only one to run.
inline constexpr int kPackThreads = 256;
inline constexpr int kMaxPackThreads = 512;
inline constexpr int kMaxCandidates = 8;

// Words from one depth quad to the next in shared memory: 64 rows a block, and 4 so that stores of
// neighbouring depths meet different banks.
constexpr int quad_words(int blocks) { return kPageTokens * blocks + 4; }

// 64 tokens of every kv head. In device memory.
struct PackJob {
  const std::uint16_t* key;    // fp16 [kv_heads, 64 tokens, head_dim], strides in PackBatch
  const std::uint16_t* value;  // likewise; finite numbers, 16-byte aligned
  std::byte* page;             // out: [kv_heads] pages, 128-byte aligned; null: nothing to do
};

// Codes are counted in units of 2^-n with 2^n >= levels - 1, so that they lie between 0 and 1, the
// limits that a saturating addition keeps for nothing. Scaling by a power of two changes no
// rounding.
struct CodeUnits {
  float unit;          // 2^-n
  float codes_a_unit;  // 2^n
  float last;          // levels - 1, all below in units
  float middle;        // (levels - 1) / 2
  float rounder;       // 1.5 * 2^23
  float top;           // 1.5 * 2^23 + levels - 1
};

// The K or the V part of a page and how it is fitted. Lines, members and groups: codec/fit.h.
struct PackTensor {
  Bits bits;
  bool affine;
  bool mean_square;
  bool half_quadratic;
  bool members_are_depths;

  int rotation;  // length of the Hadamard transform, 1 for none
  float rotation_scale;

  int token_stride;   // floats from token to token in shared memory, for no bank conflicts
  int member_stride;  // floats from member to member of a line, and from line to line
  int line_stride;
  int members;
  int lines;
  int group_members;
  int group_lines;  // 2^log2_group_lines
  int log2_group_lines;

  float last_code;
  float middle_code;
  CodeUnits units;
  int candidate_count;
  float ratio[kMaxCandidates];   // codec/fit_candidates.inl
  float offset[kMaxCandidates];  // symmetric: 1 where the base is the mean

  int blocks;
  int quads;  // of a block
  int low_width;
  int high_width;  // 0: one plane
  int block_bytes;
  int planes;  // byte offsets in the page
  int scales;
  int centers;
  int parameter_bytes;  // of one section, its padding included

  // Index of a group's scale in the section: row_offset[row group] + depth_offset[depth group].
  std::uint16_t row_offset[256];
  std::uint16_t depth_offset[256];
};

struct PackParams {
  const PackJob* jobs;
  const std::int32_t* job_count;  // null: max_jobs
  std::int32_t max_jobs;
  std::int32_t kv_heads;
  std::int32_t head_dim;
  std::int32_t padding_bytes;     // from the end of V to the end of the page
  std::int32_t padding;           // byte offset in the page
  std::int64_t row_head_stride;   // fp16 numbers from kv head to kv head
  std::int64_t row_token_stride;  // fp16 numbers from token to token
  std::int64_t page_head_stride;  // bytes
  std::int32_t words;             // byte offsets in shared memory: codes
  std::int32_t parameters;        // scales, then centers
  PackTensor tensors[2];          // K, V
};

}  // namespace kvq::cuda
