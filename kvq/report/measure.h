// Measures everything that a report shows.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>

#include "kvq/cache/page_pool.h"
#include "kvq/codec/spec.h"
#include "kvq/model/tokenizer.h"
#include "kvq/report/document.h"
#include "kvq/runtime/engine.h"

namespace kvq {

struct MeasureOptions {
  std::string program;          // Document::program
  std::string label;            // ModelSummary::name
  std::string model;            // MODEL of a command line; empty: the one that is included
  std::string text_file;        // empty: the model writes the text
  int windows = 4;              // of it, at most
  int sensitivity_windows = 2;  // of text that the model writes; 0: no sensitivity, no plans
  std::uint64_t seed = 0;       // of text that the model writes
  LayerSpec base;               // packed; the formats vary one or two of its options
  int sinks = 4;
  int window = 64;
  Isa isa = Isa::kPortable;
};

//   directory  holds the engine's model
Result<Document> measure_document(Engine& engine, const Tokenizer& tokenizer,
                                  const std::filesystem::path& directory,
                                  const MeasureOptions& options,
                                  const std::shared_ptr<PagePool>& pool);

}  // namespace kvq
