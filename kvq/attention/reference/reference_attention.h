// Attention in plain double precision, straight from its definition: what every kernel is tested
// against. Linked into tests only.
#pragma once

#include <vector>

#include "kvq/attention/attention.h"

namespace kvq {

// The output of the item, [tokens, query_heads, head_dim]; item.output is not touched. A query sees
// pages as unpack_page() returns them and the other positions exactly. With exact_prefill no page
// at or behind the view's tail.first is read.
std::vector<double> reference_attention(const AttentionShape& shape, const AttentionItem& item,
                                        bool exact_prefill);

}  // namespace kvq
