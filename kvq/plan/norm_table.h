// Norms of the key and value projections: what the norm planner takes for a tensor's sensitivity,
// and the file that holds them.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "kvq/base/status.h"
#include "kvq/plan/cost_table.h"
#include "kvq/plan/plan.h"

namespace kvq {

struct NormTable {
  std::string label;  // the model's name, for people
  std::string norm;   // "frobenius" or "spectral"; empty where a file does not say
  // Identity empty, kv_heads and head_dim 0 where a file does not say.
  PlanModel model;
  // Of the whole projection, a layer; finite and above 0.
  std::vector<double> keys;
  std::vector<double> values;
  // Of the rows of one kv head, [layers][kv_heads]; empty where a file does not say.
  std::vector<std::vector<double>> key_heads;
  std::vector<std::vector<double>> value_heads;
};

// {"model", "norm", "w_k": [...], "w_v": [...]}; "identity", "kv_heads", "head_dim", "heads_k" and
// "heads_v" may be there too. Only the lists w_k and w_v must be; errors name file and field.
Result<NormTable> read_norms(const std::filesystem::path& path);
// The text of the file, with every field that the table has.
std::string to_json(const NormTable& table);

// Norms as costs. Error of a tensor of norm s under b-bit codes, by rate and distortion: s^2
// 2^(-2b). One candidate a width, in the order given; everything else as in `base`. The norms'
// model must have kv_heads and head_dim.
Result<CostTable> width_costs(const NormTable& norms, const LayerSpec& base,
                              const std::vector<Bits>& widths);

// Under groups of g numbers: s g. Candidate i of tensor t is base[t] with group groups[i]; base as
// chosen_layers() gives it.
Result<CostTable> group_costs(const NormTable& norms, const std::vector<LayerSpec>& base,
                              const std::vector<int>& groups);

}  // namespace kvq
