// What the numbers of a run say, in words.
#pragma once

#include <string>
#include <vector>

#include "kvq/report/document.h"

namespace kvq {

struct Advice {
  std::string goal;              // "nearly exact", ...
  double limit = 0;              // of the KL divergence, nats
  const MeasuredFormat* format;  // the smallest measured one below the limit, null if none is
  const MeasuredFormat* plan;    // likewise of plans by sensitivity, null unless it is smaller
};

// For goals from strict to loose.
std::vector<Advice> advise(const Document& document);

// One sentence each; only what was measured.
std::vector<std::string> findings(const Document& document);

}  // namespace kvq
