// What planners choose from: every tensor's candidate formats, with their bytes and their cost.
#pragma once

#include <cstdint>
#include <vector>

#include "kvq/base/status.h"
#include "kvq/codec/spec.h"

namespace kvq {

struct Candidate {
  TensorSpec spec;
  // Of one packed page (64 tokens) of all kv heads, parameters and padding included:
  // tensor_bytes().
  std::int64_t bytes = 0;
  // What the format does to the model's output, in any one unit for the whole table; lower is
  // better. Costs of different tensors are added. Finite, may be negative (a measurement's noise).
  double cost = 0;
};

// Planners know nothing else. Tensor 2l is the keys of layer l, tensor 2l + 1 its values; each has
// at least one candidate, in any order.
struct CostTable {
  std::vector<std::vector<Candidate>> tensors;
};

// Bytes of one packed page of all kv heads. Pages are padded to kPageAlignment; as keys and values
// share a page, a tensor counts as padded to that by itself, so that a sum over tensors is never
// below what the pages take (it is equal except for ternary codes of some head sizes).
Result<std::int64_t> tensor_bytes(const TensorSpec& spec, bool is_key, int kv_heads, int head_dim);

// Bytes of `layers` layers' packed pages of all kv heads at `bits` stored bits a number: the budget
// to which candidates' bytes are added up.
std::int64_t budget_bytes(double bits, int layers, int kv_heads, int head_dim);

// The formats at `choice[tensor]`, an index into each tensor's candidates, as layers.
std::vector<LayerSpec> chosen_layers(const CostTable& table, const std::vector<int>& choice);

// Sum of the chosen candidates' bytes.
std::int64_t chosen_bytes(const CostTable& table, const std::vector<int>& choice);

// Ok, or what is wrong: an odd number of tensors, a tensor without candidates, bytes below 1, a
// cost that is not finite.
Status validate(const CostTable& table);

}  // namespace kvq
