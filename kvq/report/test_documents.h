// Documents as a measurement of some model would be. For tests only.
#pragma once

#include "kvq/report/document.h"

namespace kvq {

// Every field filled, no two numbers equal where they need not be. Zero layers: nothing of layers.
Document make_document(int layers, int head_dim);

}  // namespace kvq
