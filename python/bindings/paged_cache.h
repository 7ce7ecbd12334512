// Packed caches in blocks that another program hands out (vLLM's paged cache).
//
//   block table of a request   [ 17 ][  4 ][ 23 ][  9 ]          64 tokens each
//                                 |     |     |     |
//   blocks of a layer          page  page  page   (being filled: not written yet)
//                                                   |
//   slots of a layer                              fp16 rows, one slot a running request
//
// A block is one page for each kv head. Rows of the block being filled, and of `window` tokens
// before it, lie in the request's slot; when its last token comes it is packed, once. Written
// blocks never change, so requests may share them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "kvq/attention/attention.h"
#include "kvq/base/cpu.h"
#include "kvq/base/half.h"
#include "kvq/codec/page_format.h"
#include "python/bindings/tensor.h"
#include "python/bindings/workers.h"

namespace kvq::python {

struct PagedShape {
  int query_heads = 0;
  int kv_heads = 0;
  int head_dim = 0;
  int slots = 0;   // requests that run at a time
  int window = 0;  // tokens kept in 16 bits before the block being filled; a multiple of 64
};

// The blocks of one layer: block b of kv head h starts at data + b * stride + h * page bytes.
struct Blocks {
  std::byte* data = nullptr;
  std::int64_t count = 0;
  std::int64_t stride = 0;  // bytes
};

// What a step does for its requests; every span but `table` has one entry a request.
struct PagedStep {
  std::span<const std::int32_t> starts;   // row of the first token; one entry more: all rows
  std::span<const std::int32_t> lengths;  // tokens, those of this step included
  std::span<const std::int32_t> slots;
  // Position of the first row that the slot holds: the larger of its start rounded down to a
  // block less the window, and the position at which the request began to compute.
  std::span<const std::int32_t> firsts;
  std::span<const std::int32_t> table;  // [requests, columns], blocks in order
  std::int64_t columns = 0;
};

class PagedCache {
 public:
  static Result<PagedCache> create(std::span<const LayerSpec> layers, const PagedShape& shape);

  PagedCache(PagedCache&&) = default;
  PagedCache& operator=(PagedCache&&) = default;

  const PagedShape& shape() const { return shape_; }
  int layers() const { return static_cast<int>(formats_.size()); }
  std::size_t page_bytes(int layer) const {
    return formats_[static_cast<std::size_t>(layer)].page_bytes;
  }
  std::int64_t slot_bytes() const;  // of all layers and slots

  // Appends the step's rows to the requests' caches and attends to everything up to them.
  //   key, value     [1, kv_heads, rows, head_dim]; rows behind the last request's are not read
  //   query, output  [1, query_heads, rows, head_dim]
  Status step(int layer, const Blocks& blocks, const PagedStep& step, const Rows& key,
              const Rows& value, const Rows& query, const Rows& output, float scale);

 private:
  // One request in a step.
  struct Request {
    int row;  // of its first token
    int tokens;
    std::int64_t begin;  // position of its first token
    std::int64_t end;
    std::int64_t first;  // position of row 0 in `rows`
    std::int64_t keep;   // position of row 0 in the slot afterwards
    Half* slot;          // [key, value][kv_heads][slot rows][head_dim]
    Half* rows;          // the slot, or the same with `capacity` rows where that is too small
    std::int64_t capacity;
    const std::int32_t* table;  // its blocks
  };
  struct PackTask {
    int request;
    std::int64_t page;
  };

  PagedCache(std::vector<PageFormat> formats, const PagedShape& shape);
  std::int64_t slot_rows() const;
  // Of all heads' rows of keys, or of values.
  std::int64_t tensor_elements(std::int64_t capacity) const;

  Status plan_step(int layer, const Blocks& blocks, const PagedStep& step, const Rows& key,
                   const Rows& query);
  Status check_request(const PagedStep& step, std::size_t index, std::int64_t block_count) const;
  void plan_request(int layer, const PagedStep& step, std::size_t index);
  void take_workspace(const Rows& query, const Rows& output);
  bool write_rows(const Request& request, int head, const Rows& key, const Rows& value);
  void read_queries(const Request& request, int head, const Rows& query);
  void pack(const PackTask& task, int head, const PageFormat& format, const Blocks& blocks,
            Isa isa) const;
  void make_views(const PageFormat& format, const Blocks& blocks);
  Status attend(const Rows& query, float scale, Workers& workers);
  void write_output(const Request& request, int head, const Rows& output) const;
  void keep_rows(const Request& request, int head) const;

  PagedShape shape_;
  std::vector<PageFormat> formats_;                   // of each layer
  std::vector<std::unique_ptr<Half[]>> slot_memory_;  // of each layer

  // Of the current step; kept so that memory is taken once.
  std::vector<Request> requests_;
  std::vector<PackTask> pack_tasks_;
  std::vector<Half> rows_;
  std::vector<float> queries_;  // [rows, query_heads, head_dim]
  std::vector<float> outputs_;  // likewise
  float* output_rows_ = nullptr;
  std::vector<PageRef> pages_;
  std::vector<LayerView> views_;
  std::vector<AttentionItem> items_;
};

}  // namespace kvq::python
