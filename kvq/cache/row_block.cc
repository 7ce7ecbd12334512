#include "kvq/cache/row_block.h"

#include <cstring>
#include <utility>

namespace kvq {

std::int64_t RowBlock::bytes(std::int64_t capacity, int kv_heads, int head_dim) {
  return 2 * capacity * kv_heads * head_dim * static_cast<std::int64_t>(sizeof(Half));
}

RowBlock::RowBlock(std::shared_ptr<PoolBlock> block, std::int64_t capacity, int kv_heads,
                   int head_dim)
    : block_(std::move(block)), capacity_(capacity), kv_heads_(kv_heads), head_dim_(head_dim) {}

void RowBlock::copy_rows(const RowBlock& source, std::int64_t source_row, std::int64_t row,
                         std::int64_t count) {
  if (count <= 0) return;
  const std::size_t bytes = static_cast<std::size_t>(count * head_dim_) * sizeof(Half);
  for (int head = 0; head < kv_heads_; ++head) {
    std::memmove(key(head, row), source.key(head, source_row), bytes);
    std::memmove(value(head, row), source.value(head, source_row), bytes);
  }
}

}  // namespace kvq
