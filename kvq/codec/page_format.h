// Where everything lies in a packed page. docs/page_format.md defines the layout; in short:
//
//   page    = 64 tokens of one kv head: [K planes][K scales][K centers][V planes][V scales]
//             [V centers], sections at multiples of 64 bytes, the page a multiple of 128 bytes.
//   planes  = blocks of 64 rows x depth. K: one block, row = token, depth = channel. V: one block
//             per 64 channels, row = channel - 64 * block, depth = token.
//   16 bits = the same blocks in fp16, depth-major: [block][depth][64 rows]; no parameters.
//             (K: [head_dim][64 tokens]; V: [ceil(head_dim / 64)][64 tokens][64 channels].)
#pragma once

#include <cstddef>

#include "kvq/base/status.h"
#include "kvq/codec/spec.h"

namespace kvq {

inline constexpr int kBlockRows = 64;
inline constexpr std::size_t kSectionAlignment = 64;
inline constexpr std::size_t kPageAlignment = 128;

// The K or the V part of a page.
struct TensorFormat {
  TensorSpec spec;
  bool is_key = true;
  int head_dim = 0;

  int blocks = 1;      // blocks of 64 rows
  int depth = 0;       // depth of one block: head_dim for K, 64 for V
  int group_rows = 0;  // rows and depths of the rectangle that shares one scale (0 at 16 bits)
  int group_depth = 0;
  // Parameters that belong to a depth (K per channel, V per token) fold into q or p; parameters
  // that belong to a row (K per token, V per channel) fold into the dot product.
  bool depth_wise = false;
  int parameter_count = 0;  // fp16 numbers in the scales section (the same in the centers section)

  std::size_t block_bytes = 0;    // all planes of one block
  std::size_t planes_offset = 0;  // bytes from the start of the page
  std::size_t scales_offset = 0;
  std::size_t centers_offset = 0;  // = scales' end where there are none
  std::size_t bytes = 0;           // the three sections together

  bool has_centers() const { return spec.parameters == Parameters::kAffine; }
};

struct PageFormat {
  // Fails on a head_dim that is not a multiple of 16 in [16, 256] or a group that is not 16, 32,
  // 64, 128 or 256, or on Fit::kHqq without centers.
  static Result<PageFormat> create(const LayerSpec& spec, int head_dim);

  LayerSpec spec() const { return {key.spec, value.spec}; }
  int head_dim() const { return key.head_dim; }
  // Stored bits per cached number, parameters and padding included.
  double effective_bits() const;

  TensorFormat key;
  TensorFormat value;
  std::size_t page_bytes = 0;
};

// head_dim rounded up to whole blocks of 64 channels.
constexpr int padded_channels(int head_dim) { return (head_dim + 63) / 64 * 64; }

// Where a plane of `width` (1, 2, 4 or 8) bits keeps the code of (row, depth quad T = depth / 4):
// byte offset of the 32-bit word in the plane, and the lowest bit inside byte (depth % 4) of it.
struct PlaneField {
  int word;
  int bit;
};
PlaneField plane_field(int width, int row, int quad);

// The planes of a packed width, low bits first: {2, 1} for 3 bits. Second is 0 where there is one.
struct Planes {
  int low;
  int high;
};
Planes planes(Bits bits);

// fp16 index, inside the scales (or centers) section, of the group that holds (token, channel): the
// sum of an offset by row (token for K, channel for V) and one by depth (channel for K, token for
// V).
int parameter_index(const TensorFormat& format, int token, int channel);
int parameter_row_offset(const TensorFormat& format, int row);
int parameter_depth_offset(const TensorFormat& format, int depth);

}  // namespace kvq
