// Frequencies of rotary position embedding.
#pragma once

#include <vector>

#include "kvq/model/config.h"

namespace kvq {

// Radians per position of each pair (i, i + head_dim / 2), [head_dim / 2], rounded to float32 step
// by step as transformers does: at long contexts the rounding shows.
std::vector<float> rotary_frequencies(const ModelConfig& config);

}  // namespace kvq
