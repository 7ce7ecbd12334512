#include "kvq/analysis/candidates.h"

#include <algorithm>
#include <tuple>

#include "kvq/codec/page_format.h"
#include "kvq/plan/optimal.h"

namespace kvq {
namespace {

// Cost saved per byte from one candidate to a larger one.
double slope(const Candidate& from, const Candidate& to) {
  return (from.cost - to.cost) / static_cast<double>(to.bytes - from.bytes);
}

// Of candidates with ascending bytes and descending costs.
std::vector<Candidate> lower_hull(const std::vector<Candidate>& candidates) {
  std::vector<Candidate> hull;
  for (const Candidate& candidate : candidates) {
    while (hull.size() >= 2 &&
           slope(hull[hull.size() - 2], hull.back()) <= slope(hull.back(), candidate)) {
      hull.pop_back();
    }
    hull.push_back(candidate);
  }
  return hull;
}

// The hull's cost at `bytes`, which lie between those of its ends.
double hull_cost(const std::vector<Candidate>& hull, std::int64_t bytes) {
  const auto right = std::ranges::lower_bound(hull, bytes, {}, &Candidate::bytes);
  if (right->bytes == bytes) return right->cost;
  const Candidate& left = *(right - 1);
  return left.cost - slope(left, *right) * static_cast<double>(bytes - left.bytes);
}

Result<std::int64_t> page_bytes(const std::vector<LayerSpec>& layers, int kv_heads, int head_dim) {
  std::int64_t bytes = 0;
  for (const LayerSpec& layer : layers) {
    KVQ_ASSIGN_OR_RETURN(const PageFormat format, PageFormat::create(layer, head_dim));
    bytes += kv_heads * static_cast<std::int64_t>(format.page_bytes);
  }
  return bytes;
}

}  // namespace

Result<std::int64_t> section_bytes(const TensorSpec& spec, bool is_key, int kv_heads,
                                   int head_dim) {
  const LayerSpec layer = is_key ? LayerSpec{spec, {}} : LayerSpec{{}, spec};
  KVQ_ASSIGN_OR_RETURN(const PageFormat format, PageFormat::create(layer, head_dim));
  return kv_heads * static_cast<std::int64_t>(is_key ? format.key.bytes : format.value.bytes);
}

Result<std::vector<Candidate>> list_candidates(const CandidateOptions& options, bool is_key,
                                               int kv_heads, int head_dim) {
  std::vector<int> groups = options.groups;
  std::ranges::sort(groups);
  std::vector<Candidate> candidates;
  for (const Bits bits : options.bits) {
    for (const Axis axis : {Axis::kToken, Axis::kChannel}) {
      for (const Parameters parameters : {Parameters::kSymmetric, Parameters::kAffine}) {
        std::int64_t smaller_group = 0;  // bytes with it
        for (const int group : groups) {
          TensorSpec spec = {bits, axis, group, parameters, Fit::kMeanSquare, Rotation::kHadamard};
          KVQ_ASSIGN_OR_RETURN(const std::int64_t bytes,
                               section_bytes(spec, is_key, kv_heads, head_dim));
          if (bytes == smaller_group) continue;
          smaller_group = bytes;
          candidates.push_back({spec, bytes, 0});
          spec.rotation = Rotation::kNone;
          candidates.push_back({spec, bytes, 0});
        }
      }
    }
  }
  if (candidates.empty()) return fail("candidates: expected a width and a group, found none");
  return candidates;
}

std::vector<Candidate> shortlist(std::vector<Candidate> candidates, double slack) {
  std::ranges::sort(candidates, {}, [](const Candidate& candidate) {
    return std::tuple(candidate.bytes, candidate.cost);
  });
  std::vector<Candidate> front;
  for (const Candidate& candidate : candidates) {
    if (front.empty() || candidate.cost < front.back().cost) front.push_back(candidate);
  }
  const std::vector<Candidate> hull = lower_hull(front);
  std::erase_if(front, [&](const Candidate& candidate) {
    return candidate.cost > (1 + slack) * hull_cost(hull, candidate.bytes);
  });
  return front;
}

Result<std::vector<int>> choose_pages(const CostTable& table, std::int64_t budget, int kv_heads,
                                      int head_dim) {
  // Padding adds nothing, or 64 bytes to a layer's page of a head: less room for the sections until
  // the pages fit.
  const std::int64_t step = std::int64_t{kv_heads} * static_cast<std::int64_t>(kSectionAlignment);
  for (std::int64_t room = budget;; room -= step) {
    KVQ_ASSIGN_OR_RETURN(std::vector<int> choice, choose_optimal(table, room));
    KVQ_ASSIGN_OR_RETURN(const std::int64_t bytes,
                         page_bytes(chosen_layers(table, choice), kv_heads, head_dim));
    if (bytes <= budget) return choice;
  }
}

}  // namespace kvq
