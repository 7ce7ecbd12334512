// Decode: one new token per sequence attends to packed pages and exact rows.
//
// Work is cut into units of a fixed number of pages of one (sequence, kv head), independent of the
// number of threads, and one unit for the exact rows. Every unit leaves a softmax state and a
// weighted sum; they are merged in order: pages first, whose sum is then rotated back, then the
// exact rows. So the result does not depend on threads or on which of them did what.
#pragma once

#include <memory>
#include <span>
#include <string>

#include "kvq/attention/attention.h"

namespace kvq {

// Whether decode kernels exist for both halves of pages of this format, for `group_heads` query
// heads per kv head. Otherwise the tile kernels (cpu/tile.h) have to serve.
bool decode_supports(const PageFormat& format, int group_heads, Isa isa);

// For example "avx512/dot k4 v2".
std::string decode_kernel_name(const PageFormat& format, Isa isa);

class Decoder {
 public:
  // The shape has been checked; its G is 1 to 16, its head_dim a multiple of 16 up to 256.
  Decoder(const AttentionShape& shape, const AttentionOptions& options);
  Decoder(Decoder&&) noexcept;
  Decoder& operator=(Decoder&&) noexcept;
  ~Decoder();

  // Every item has one token and a view whose format decode_supports(). Outputs are written whole.
  void run(std::span<const AttentionItem* const> items, ThreadPool& threads);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace kvq
