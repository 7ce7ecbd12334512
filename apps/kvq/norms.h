// Norm tables on the command line, shared by `kvq norms` and `kvq plan`.
#pragma once

#include <string>

#include "apps/kvq/options.h"
#include "kvq/analysis/norms.h"

namespace kvq {

// --norm frobenius|spectral
struct NormOption {
  std::string name = "frobenius";

  void add(CLI::App& app);
  Norm norm() const { return name == "spectral" ? Norm::kSpectral : Norm::kFrobenius; }
};

// Of the weights in `directory`; the table's label is the model's.
Result<NormTable> measure_model_norms(const ModelOptions& model, const MachineOptions& machine,
                                      const NormOption& norm);

// On stderr: where keys are below values, and where a norm of W_K says nothing about the keys that
// are cached. `qk_norm`: the model normalizes its keys after the projection.
void warn_about_norms(const NormTable& table, bool qk_norm);

}  // namespace kvq
