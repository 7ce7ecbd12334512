// What a format does to one layer's attention output: queries, keys and values are captured in one
// 16-bit pass, then every format is tried on them without running the model again.
#pragma once

#include <memory>
#include <span>
#include <vector>

#include "kvq/attention/attention.h"
#include "kvq/base/cpu.h"
#include "kvq/cache/sequence.h"
#include "kvq/model/config.h"
#include "kvq/runtime/pass_tap.h"

namespace kvq {

// One layer of one window.
struct CapturedHeads {
  std::vector<float> query;  // [tokens, query_heads, head_dim], after RoPE
  std::vector<float> key;    // [tokens, kv_heads, head_dim], after RoPE
  std::vector<float> value;  // [tokens, kv_heads, head_dim]
};

// Captures every layer of a window of `tokens` tokens.
class HeadsTap : public PassTap {
 public:
  HeadsTap(const ModelConfig& config, int tokens);
  void layer_input(int layer, int first_row, int rows, const float* hidden) override;
  void layer_heads(int layer, int first_row, int rows, const float* query, const float* key,
                   const float* value) override;

  const CapturedHeads& layer(int layer) const { return layers_[static_cast<std::size_t>(layer)]; }

 private:
  std::ptrdiff_t query_width_;
  std::ptrdiff_t kv_width_;
  std::vector<CapturedHeads> layers_;
};

// Queries [first, first + count) of a window.
struct QueryBlock {
  int first = 0;
  int count = 0;
};

// Queries that are looked at together.
inline constexpr int kQueryBlock = 16;

// The first position whose query reads a packed page.
constexpr int first_packed_query(int sinks, int window) { return sinks + window + kPageTokens; }

// Blocks of kQueryBlock queries, `stride` apart, from the first one that reads a packed page on.
std::vector<QueryBlock> query_blocks(const CacheSpec& exact_rows, int tokens, int stride);

// Tries formats on one layer of one window, for some of its queries.
class AttentionError {
 public:
  // `exact_rows`: its sinks and window count, its layers mean nothing. There is at least one block.
  // The references outlive the result.
  static Result<AttentionError> create(const ModelConfig& config, const CapturedHeads& heads,
                                       const CacheSpec& exact_rows, std::vector<QueryBlock> blocks,
                                       Isa isa, std::shared_ptr<PagePool> pool,
                                       ThreadPool& threads);

  // Mean over the queries of ||output with this format - exact output||^2, all heads.
  Result<double> mean_square(const LayerSpec& spec);

 private:
  AttentionError(const ModelConfig& config, const CapturedHeads& heads, CacheSpec shape,
                 std::vector<QueryBlock> blocks, Isa isa, Attention attention,
                 std::shared_ptr<PagePool> pool, ThreadPool& threads);
  Status attend(const LayerSpec& spec, std::vector<float>& output);

  const CapturedHeads& heads_;
  std::ptrdiff_t query_width_;
  CacheSpec shape_;  // of one layer
  std::vector<QueryBlock> blocks_;
  Isa isa_;
  Attention attention_;
  std::shared_ptr<PagePool> pool_;
  ThreadPool& threads_;
  int tokens_;
  std::vector<float> exact_;    // [queries of all blocks, query_heads, head_dim]
  std::vector<float> changed_;  // likewise
};

}  // namespace kvq
