// Attention of many query rows over tiles: every format, any number of tokens.
//
// Work is cut into pieces of fixed size, whatever the number of threads:
//   block  consecutive tokens x the G query heads of one kv head of one item, about 192 query rows
//   unit   a range of the strips that a block sees
// A block of one unit is finished with it; otherwise the units' results are merged in their order.
#pragma once

#include <memory>
#include <span>

#include "kvq/attention/attention.h"

namespace kvq {

class Prefill {
 public:
  Prefill(const AttentionShape& shape, Isa isa, bool exact_prefill);
  ~Prefill();

  // The items must be valid (attention.cc checks them). Memory is kept for the next call; throws
  // std::bad_alloc if there is none.
  void run(std::span<const AttentionItem* const> items, ThreadPool& threads);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace kvq
