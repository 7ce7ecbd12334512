// Attention over packed pages and exact rows.
//
//   output[t, h] = sum_p softmax_p(scale * q[t, h] . k[p, h / G]) v[p, h / G],   p <= position of t
//
// A query sees packed positions [S, P(p)) as the page stores them and all others exactly (cache/
// view.h). Codes are read where they lie: no dequantized copy of the cache is ever made.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "kvq/base/cpu.h"
#include "kvq/base/status.h"
#include "kvq/base/thread_pool.h"
#include "kvq/cache/view.h"

namespace kvq {

// The newest `tokens` tokens of one sequence attend to all tokens up to themselves.
struct AttentionItem {
  const LayerView* view;  // its last `tokens` positions are the queries'
  const float* query;     // [tokens, query_heads, head_dim], after RoPE, unscaled
  float* output;          // [tokens, query_heads, head_dim]
  int tokens;
};

inline constexpr int kMaxHeadsPerKvHead = 16;

struct AttentionShape {
  int query_heads = 0;
  int kv_heads = 0;  // divides query_heads; G = query_heads / kv_heads, 1 to kMaxHeadsPerKvHead
  int head_dim = 0;
  float scale = 0;  // of the scores, normally 1 / sqrt(head_dim)
};

// Numeric precision of the decode kernels' integer operands.
enum class Precision : std::uint8_t {
  kDefault,  // two int8 terms of q, one uint8 term of p; two for 8-bit values
  kFast,     // one int8 term of q: less accurate where a channel dominates
};

struct AttentionOptions {
  Isa isa = Isa::kPortable;
  Precision precision = Precision::kDefault;
  // Queries of the newest chunk read the chunk's own rows (and all rows still held exactly)
  // unquantized, whatever P(p) says: the way transformers' quantized caches prefill.
  bool exact_prefill = false;
};

class Attention {
 public:
  static Result<Attention> create(const AttentionShape& shape, const AttentionOptions& options);
  Attention(Attention&&) noexcept;
  Attention& operator=(Attention&&) noexcept;
  ~Attention();

  // Items of any lengths; work is split over (sequence, kv head, page range). All views must have
  // the shape's kv_heads and head_dim. The result does not depend on the number of threads.
  Status run(std::span<const AttentionItem> items, ThreadPool& threads);

  // Which kernel decodes (items of 1 to 8 tokens) or prefills pages of this format, for example
  // "avx512/dot k4 v2", "avx512/tile k4 v2".
  std::string kernel_name(const PageFormat& format, bool decode) const;

 private:
  struct State;
  explicit Attention(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace kvq
