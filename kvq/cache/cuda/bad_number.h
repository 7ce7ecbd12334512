// What append_rows() found, in words.
#pragma once

#include <string>

#include "kvq/cache/cuda/append_rows.h"

namespace kvq::cuda {

struct BadNumberPlace {
  int layer;
  int row;  // of the pass
  int kv_head;
  std::string what;  // "key channel 3 is nan, expected ..."
};
BadNumberPlace describe(BadNumber number);

}  // namespace kvq::cuda
