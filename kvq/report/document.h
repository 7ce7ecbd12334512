// Everything that a report shows: what `kvq analyze` measured, and the JSON file that keeps it.
#pragma once

#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "kvq/analysis/activations.h"
#include "kvq/base/status.h"

namespace kvq {

struct ModelSummary {
  std::string name;
  std::string type;  // "llama", "qwen3"
  int layers = 0;
  int query_heads = 0;
  int kv_heads = 0;
  int head_dim = 0;
  int context = 0;
};

struct TextSummary {
  std::string file;  // empty: written by the model itself
  std::uint64_t seed = 0;
  int windows = 0;
  int tokens_per_window = 0;
  double nll_16bit = 0;  // mean over the text, nats a token
};

// Norms of the projections that make keys and values, one number a layer.
struct WeightNorms {
  std::vector<double> key_frobenius;
  std::vector<double> value_frobenius;
  std::vector<double> key_spectral;
  std::vector<double> value_spectral;
};

// One cache format, or plan, on the text.
struct MeasuredFormat {
  std::string name;
  double effective_bits = 0;  // stored bits a packed number, parameters and padding included
  double cache_share = 0;     // of a 16-bit cache's bytes, at the model's full context
  double nll = 0;
  double kl = 0;
  double top1 = 0;
};

// Formats by two options; cells name a MeasuredFormat.
struct MeasuredGrid {
  std::string base;  // the format whose other options all share
  std::vector<std::string> rows;
  std::vector<std::string> columns;
  std::vector<std::vector<std::string>> cells;  // [rows][columns]
};

// KL divergence when one tensor alone is packed, nats.
struct TensorSensitivity {
  std::string base;  // the format whose other options all widths share
  int windows = 0;   // of text that the model wrote itself
  std::uint64_t seed = 0;
  std::vector<std::string> widths;         // "1", "2", ...
  std::vector<std::vector<double>> key;    // [layers][widths]
  std::vector<std::vector<double>> value;  // [layers][widths]
};

struct MeasuredPlan {
  std::string method;               // "norm" or "sensitivity"
  double budget = 0;                // stored bits a number, at most
  std::vector<std::string> layers;  // format of each
  MeasuredFormat score;
};

struct Document {
  std::string program;  // "kvq 0.1.0"
  std::string command;  // that repeats the measurement
  ModelSummary model;
  TextSummary text;
  int sinks = 0;
  int window = 0;
  std::optional<WeightNorms> weight_norms;
  std::vector<double> error_bits;  // width of each of activations.formats
  Activations activations;
  std::vector<MeasuredFormat> formats;
  MeasuredGrid widths;
  MeasuredGrid rotations;
  MeasuredGrid groups;
  std::optional<TensorSensitivity> sensitivity;
  std::vector<MeasuredPlan> plans;  // empty where there is no sensitivity

  // Null where no format has this name.
  const MeasuredFormat* find_format(const std::string& name) const;
};

nlohmann::ordered_json to_json(const Document& document);

// Reads what to_json() wrote. Another version, an absent field and lists of contradictory lengths
// are errors that begin with `where` and name the field.
Result<Document> parse_document(const nlohmann::json& object, const std::string& where);
Result<Document> read_document(const std::filesystem::path& path);

}  // namespace kvq
