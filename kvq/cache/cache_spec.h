// The shape and format of a cache, and what it costs in bytes.
#pragma once

#include <cstdint>
#include <vector>

#include "kvq/codec/page_format.h"
#include "kvq/plan/plan.h"

namespace kvq {

struct CacheSpec {
  std::vector<LayerSpec> layers;
  int kv_heads = 0;
  int head_dim = 0;
  int sinks = 4;    // S: the first tokens, kept in fp16 for good
  int window = 64;  // W: the newest tokens, kept in fp16; a multiple of 64

  static CacheSpec uniform(const LayerSpec& spec, int layers, int kv_heads, int head_dim);
  static CacheSpec of(const Plan& plan);
};

// Ok, or what is wrong with it. The functions below take valid specs.
Status validate(const CacheSpec& spec);

// Bytes that `tokens` cached tokens of one sequence occupy: packed pages plus exact rows, metadata
// included, allocation slack excluded. Every table of the project reports this figure.
std::int64_t cache_bytes(const CacheSpec& spec, std::int64_t tokens);
// The same numbers in plain fp16.
std::int64_t cache_bytes_16bit(const CacheSpec& spec, std::int64_t tokens);
// Mean stored bits per cached number of the packed pages, parameters and padding included.
double effective_bits(const CacheSpec& spec);

}  // namespace kvq
