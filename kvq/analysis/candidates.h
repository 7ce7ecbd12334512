// The formats among which a planner chooses for one tensor.
#pragma once

#include <cstdint>
#include <vector>

#include "kvq/base/status.h"
#include "kvq/codec/spec.h"
#include "kvq/plan/cost_table.h"

namespace kvq {

struct CandidateOptions {
  std::vector<Bits> bits = packed_bits();
  std::vector<int> groups = {64, 128, 256};
};

// Every width and group with both axes, both parameters and both rotations, fitted to the least
// squared error; bytes as they add up in a page (section_bytes()), no costs. Left out: groups that
// take as many bytes as a smaller one.
Result<std::vector<Candidate>> list_candidates(const CandidateOptions& options, bool is_key,
                                               int kv_heads, int head_dim);

// Bytes of one tensor's sections in a page of all kv heads. Keys and values together are padded to
// kPageAlignment, so that a page may take up to 64 bytes a head more than the sum of its tensors.
Result<std::int64_t> section_bytes(const TensorSpec& spec, bool is_key, int kv_heads, int head_dim);

// Of candidates with measured costs, those worth measuring better: not dominated, and at most
// `slack` (0.15 = 15 %) above the lower convex hull of cost over bytes. Bytes ascend.
std::vector<Candidate> shortlist(std::vector<Candidate> candidates, double slack);

// The choice of least cost whose pages fit into `budget` bytes. The table's bytes are those of
// section_bytes().
Result<std::vector<int>> choose_pages(const CostTable& table, std::int64_t budget, int kv_heads,
                                      int head_dim);

}  // namespace kvq
