// Models and numbers that tests of the runtime share.
#pragma once

#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "kvq/runtime/engine.h"

namespace kvq {

std::filesystem::path demo_model();
std::filesystem::path tiny_model(const std::string& name);
const std::vector<std::string>& tiny_models();

// Loads with default_isa() and two threads unless told otherwise.
Engine load_engine(const std::filesystem::path& directory, EngineOptions options = {});

// Unquantized (k16v16) unless told otherwise.
std::shared_ptr<const CacheSpec> make_spec(const Engine& engine, const std::string& text = "k16v16",
                                           int sinks = 4, int window = 64);
Sequence make_sequence(const Engine& engine, std::shared_ptr<const CacheSpec> spec,
                       std::shared_ptr<PagePool> pool = PagePool::create(0));

// The logits of forward(), copied; an error fails the test.
std::vector<float> forward(Engine& engine, std::span<const Chunk> chunks, LogitRows rows);
std::vector<float> forward(Engine& engine, Sequence& sequence, std::span<const int> tokens,
                           LogitRows rows);

// -log softmax(logits)[token].
double negative_log_likelihood(std::span<const float> logits, int token);

// max |a - b| / max |b|.
double relative_difference(std::span<const float> a, std::span<const float> b);

std::vector<int> random_tokens(int count, int vocabulary, unsigned seed);

}  // namespace kvq
