// The cached keys and values of one layer of one sequence: packed pages and exact rows.
//
//   position   0 ... S-1 | S ............. boundary | boundary ...... length-1
//              sinks     | pages of 64 tokens       | tail
//                                     | first ......| ................|   rows held in the tail
//
// The tail also holds rows [first, boundary) of pages that were packed while the newest chunk was
// appended: the chunk's earlier queries read them exactly.
#pragma once

#include <cstdint>
#include <vector>

#include "kvq/base/cpu.h"
#include "kvq/cache/cache_spec.h"
#include "kvq/cache/page_store.h"
#include "kvq/cache/row_block.h"
#include "kvq/cache/sequence.h"
#include "kvq/cache/view.h"

namespace kvq {

class LayerStore {
 public:
  // `format` is the layer's and outlives the store.
  LayerStore(const PageFormat& format, const CacheSpec& spec);

  LayerView view() const;
  ByteCount bytes() const;

  // All memory that a chunk can need: first the sizes of the blocks that begin_chunk() will take.
  void list_chunk_blocks(int tokens, std::vector<std::int64_t>& sizes);
  void begin_chunk(int tokens, BlockSource& blocks);
  void abort_chunk();
  // Whether a chunk is open that this layer does not hold yet.
  bool awaits_chunk() const { return chunk_tokens_ > 0; }

  // Writes the chunk's rows of one kv head; heads may be written in parallel. False if a number is
  // not finite in fp16.
  //   key, value  [tokens of the chunk, kv_heads, head_dim]
  bool write_rows(int head, const float* key, const float* value);
  // Pages that leave the window with the chunk, and packing one of them, for one kv head, after the
  // head's rows were written; pages and heads may be packed in parallel.
  std::int64_t pages_to_pack() const { return target_pages_ - pages_.count(); }
  void pack(std::int64_t page, int head, Isa isa);
  // After all rows were written and all pages packed: the chunk is part of the layer.
  void finish_chunk();
  // What write_rows() of this head objected to.
  Error describe_bad_number(int layer, int head, const float* key, const float* value) const;

  // A smaller tail, where a long chunk left a big one. 0: none wanted. Otherwise the size of the
  // block that shrink_tail() takes.
  std::int64_t smaller_tail_bytes() const;
  void shrink_tail(std::shared_ptr<PoolBlock> block);

  // A copy that shares the pages: first the sizes of the blocks that fork() will take.
  void list_fork_blocks(std::vector<std::int64_t>& sizes) const;
  LayerStore fork(BlockSource& blocks) const;

  // Keeps the first `length` tokens; no chunk may be open. See Sequence::truncate().
  void truncate(std::int64_t length);

 private:
  std::int64_t page_start(std::int64_t page) const { return sinks_ + page * kPageTokens; }
  std::int64_t tail_row(std::int64_t position) const { return position - tail_origin_; }
  // The first row that the tail must hold for a chunk that starts at length().
  std::int64_t needed_first() const;
  // Rows from position `first` to the end of the next `tokens` tokens.
  std::int64_t tail_rows(std::int64_t first, int tokens) const;
  std::int64_t block_bytes(std::int64_t rows) const;
  Half* row(int head, std::int64_t position, bool is_key) const;
  bool write_tensor(const float* rows, int head, bool is_key);
  void make_tail_room(BlockSource& blocks);
  // Moves the held rows to the start of `target`, which becomes the tail.
  void move_tail(RowBlock target);
  void unpack_into_tail(std::int64_t page, std::int64_t tokens);

  const PageFormat* format_;
  int kv_heads_;
  int sinks_;
  int window_;

  std::int64_t length_ = 0;  // tokens
  std::int64_t first_;       // position of the first row in the tail: S + a multiple of 64
  PageStore pages_;
  RowBlock sink_rows_;  // row = position
  RowBlock tail_;
  std::int64_t tail_origin_;  // position of the tail's row 0, used or not

  int chunk_tokens_ = 0;           // of the open chunk while this layer does not hold it, else 0
  std::int64_t target_pages_ = 0;  // pages once it does
  // What an aborted chunk returns to.
  struct Progress {
    std::int64_t length;
    std::int64_t first;
    std::int64_t pages;
  };
  Progress before_{};
};

}  // namespace kvq
