// Which format each layer's keys and values take, and the file (plan.json) that says so.
#pragma once

#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "kvq/base/status.h"
#include "kvq/codec/spec.h"

namespace kvq {

// The model that a plan is for.
struct PlanModel {
  // model_identity() of kvq/model: 16 hexadecimal digits that stay the same when a checkpoint is
  // copied, renamed or sharded. Empty: made from a table of norms alone, fits any model of this
  // shape.
  std::string identity;
  int layers = 0;
  int kv_heads = 0;
  int head_dim = 0;
};

struct Plan {
  PlanModel model;
  std::string method;  // how it was made: "norm", "sensitivity", ...
  double budget = 0;   // as it was asked for, in the method's unit; 0 = none was
  int sinks = 4;       // as in CacheSpec
  int window = 64;
  std::vector<LayerSpec> layers;
  double effective_bits =
      0;  // mean stored bits of a packed number, parameters and padding included
};

// The effective_bits of valid layers: the mean over their pages.
double effective_bits(const std::vector<LayerSpec>& layers, int head_dim);

// Ok, or what is wrong, "<field>: expected ..., found ...": layers that are not as many as the
// model's, formats that do not fit head_dim, effective_bits other than what the layers take, ...
Status validate(const Plan& plan);

// The file, checked whole; an error names it and the field.
Result<Plan> read_plan(const std::filesystem::path& path);
// The same of its text; `where` opens errors.
Result<Plan> parse_plan(std::string_view text, const std::string& where);
// The text of the file. The plan must be valid.
std::string to_json(const Plan& plan);
Status write_plan(const Plan& plan, const std::filesystem::path& path);

// Whether the plan read from `path` is for `model`; an error names the file and the field.
Status check_model(const Plan& plan, const PlanModel& model, const std::filesystem::path& path);

}  // namespace kvq
