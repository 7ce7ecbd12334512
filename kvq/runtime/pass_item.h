// A part of a forward pass: the tokens of one sequence.
#pragma once

#include <span>

#include "kvq/cache/sequence.h"

namespace kvq {

struct PassItem {
  Sequence* sequence;
  std::span<const int> tokens;
  int logit_rows;  // logits of this many of the last tokens are wanted
};

}  // namespace kvq
