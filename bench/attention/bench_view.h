// A layer of one sequence as a cache would hold it, filled without a model.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "bench/attention/attention_bench.h"
#include "kvq/cache/cache_spec.h"
#include "kvq/cache/page_pool.h"
#include "kvq/cache/view.h"

namespace kvq {

struct BenchViewShape {
  LayerSpec spec;
  int kv_heads = 8;
  int head_dim = 128;
  std::int64_t tokens = 0;
  int sinks = 4;
  int window = 64;
  BenchData data = BenchData::kDiffuse;
  std::uint64_t seed = 1;
};

class BenchView {
 public:
  // `distinct_pages` pages a head are packed, then repeated: packing all would take longer than
  // measuring. `copies` of the pages lie in memory of their own.
  static Result<std::unique_ptr<BenchView>> create(const BenchViewShape& shape,
                                                   std::int64_t distinct_pages, int copies);

  LayerView view(int copy) const;
  int copies() const { return static_cast<int>(pages_.size()); }
  // Bytes that a decode step reads.
  std::int64_t bytes() const;

 private:
  BenchView() = default;
  Status fill_pages(std::int64_t distinct_pages, int copies, Isa isa);
  void fill_rows();

  BenchViewShape shape_;
  PageFormat format_;
  std::int64_t page_count_ = 0;
  std::vector<std::shared_ptr<PoolBlock>> blocks_;
  std::vector<std::vector<PageRef>> pages_;  // [copy][page]
  std::vector<Half> exact_key_;              // [kv_heads, exact rows, head_dim]
  std::vector<Half> exact_value_;
  std::int64_t exact_rows_ = 0;
};

// Queries [query_heads, head_dim] of the kind of data.
std::vector<float> bench_query(int query_heads, int head_dim, BenchData data, std::uint64_t seed);

}  // namespace kvq
