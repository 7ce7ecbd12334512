// One thread's part of a prefill: a block of query rows against a range of strips.
#pragma once

#include <vector>

#include "kvq/attention/attention.h"
#include "kvq/attention/cpu/partial.h"
#include "kvq/attention/cpu/strip.h"
#include "kvq/attention/cpu/tile.h"

namespace kvq {

// What the tile kernels need to know of a page format.
struct PagePlan {
  explicit PagePlan(const PageFormat& page_format)
      : format(page_format), key(page_format.key), value(page_format.value) {}

  PageFormat format;
  TilePlan key;
  TilePlan value;
};

// Whether a tensor's pages hold rotated values.
inline bool is_rotated(const TensorFormat& format) {
  return format.spec.bits != Bits::k16 && format.spec.rotation == Rotation::kHadamard;
}

// Consecutive tokens of one item, with the G query heads of one kv head: row = token * G + head.
struct QueryBlock {
  const AttentionItem* item = nullptr;
  const PagePlan* plan = nullptr;
  int kv_head = 0;
  int first_token = 0;
  int tokens = 0;
};

class PrefillWorker {
 public:
  // Blocks of up to max_rows rows.
  PrefillWorker(const AttentionShape& shape, Isa isa, int max_rows);

  // Sums over strips [first_strip, first_strip + strips): exact rows into `plain`; pages into
  // `rotated` if their values are rotated (else it is not touched), into `plain` if not. What they
  // held is overwritten.
  void run(const QueryBlock& block, const StripList& list, int first_strip, int strips,
           const Partial& plain, const Partial& rotated);

  // Partial results of max_rows rows, for the caller's use.
  const Partial& plain() const { return plain_; }
  const Partial& rotated() const { return rotated_; }

 private:
  void load_queries(const QueryBlock& block, bool rotated);
  void load_tiles(const QueryBlock& block, const Strip& strip);
  void add_strip(const QueryBlock& block, const Strip& strip, std::int64_t first_position,
                 const Partial& partial);

  AttentionShape shape_;
  Isa isa_;
  const TileKernels* kernels_;
  int group_;  // query heads per kv head
  TileScratch scratch_;
  std::vector<FloatLine> memory_;  // of all that follows
  float* query_;                   // [max_rows][head_dim], times scale * log2(e)
  float* rotated_query_;           // the same, rotated as the pages' keys are
  float* key_tile_;                // [head_dim][64]
  float* value_tile_;              // [ceil(head_dim / 64)][64 tokens][64 channels]
  float* scores_;                  // [rows of a pass][64]
  float* rescale_;                 // [rows of a pass]
  Partial plain_;
  Partial rotated_;
};

}  // namespace kvq
