// A pool block that holds fp16 key and value rows of consecutive tokens:
//   [key, value][kv_heads][capacity][head_dim]
#pragma once

#include <cstdint>
#include <memory>

#include "kvq/base/half.h"
#include "kvq/cache/page_pool.h"

namespace kvq {

class RowBlock {
 public:
  static std::int64_t bytes(std::int64_t capacity, int kv_heads, int head_dim);

  RowBlock() = default;
  // `block` has at least bytes(capacity, kv_heads, head_dim).
  RowBlock(std::shared_ptr<PoolBlock> block, std::int64_t capacity, int kv_heads, int head_dim);

  bool empty() const { return block_ == nullptr; }
  std::int64_t capacity() const { return capacity_; }                 // rows of every kv head
  std::int64_t head_stride() const { return capacity_ * head_dim_; }  // elements
  std::int64_t allocated_bytes() const { return block_ ? block_->bytes() : 0; }

  // Row `row` of kv head `head`: [head_dim], the following rows behind it. Not for an empty block.
  Half* key(int head, std::int64_t row) const {
    return data() + (head * capacity_ + row) * head_dim_;
  }
  Half* value(int head, std::int64_t row) const { return key(kv_heads_ + head, row); }

  // Copies rows [source_row, source_row + count) of `source`, which may be this block, to `row`.
  void copy_rows(const RowBlock& source, std::int64_t source_row, std::int64_t row,
                 std::int64_t count);

 private:
  Half* data() const { return reinterpret_cast<Half*>(block_->data()); }

  std::shared_ptr<PoolBlock> block_;
  std::int64_t capacity_ = 0;
  int kv_heads_ = 0;
  int head_dim_ = 0;
};

}  // namespace kvq
