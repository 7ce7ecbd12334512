#include "kvq/attention/cpu/decode_plan.h"

#include <algorithm>
#include <cmath>

namespace kvq {
namespace {

// Fills in a pick's pieces from its indices.
void make_pieces(LinePick& pick) {
  pick.pieces = 0;
  for (int run = 0; run < 8; ++run) {
    int pieces = 0;
    for (int source = 0; source < 8; ++source) {  // 16-byte runs of the two lines
      LinePick::Piece piece{};
      std::fill_n(piece.shuffle, 16, std::uint8_t{0x80});
      piece.offset = (source < 4 ? pick.first_line : pick.second_line) + 16 * (source & 3);
      bool used = false;
      for (int i = 0; i < 8; ++i) {
        const int index = pick.index[8 * run + i];
        if (index / 8 != source) continue;
        piece.shuffle[2 * i] = static_cast<std::uint8_t>(2 * (index % 8));
        piece.shuffle[2 * i + 1] = static_cast<std::uint8_t>(2 * (index % 8) + 1);
        used = true;
      }
      if (used) pick.piece[run][pieces++] = piece;
    }
    pick.pieces = std::max(pick.pieces, pieces);
    for (; pieces < 8; ++pieces) {
      pick.piece[run][pieces].offset = pick.first_line;
      std::fill_n(pick.piece[run][pieces].shuffle, 16, std::uint8_t{0x80});
    }
  }
}

// Makes a pick of 64 fp16 numbers whose places `at` (fp16 indices in the section; -1: any number)
// lie in at most two 64-byte lines. False if they lie in more.
bool make_pick(const int (&at)[64], LinePick& pick) {
  int lines[2] = {-1, -1};
  for (int i = 0; i < 64; ++i) {
    if (at[i] < 0) {
      pick.index[i] = 0;
      continue;
    }
    const int line = at[i] / 32;
    const int which = lines[0] < 0 || lines[0] == line ? 0 : 1;
    if (lines[which] >= 0 && lines[which] != line) return false;
    lines[which] = line;
    pick.index[i] = static_cast<std::uint16_t>(32 * which + at[i] % 32);
  }
  pick.first_line = 64 * std::max(lines[0], 0);
  pick.second_line = lines[1] < 0 ? pick.first_line : 64 * lines[1];
  make_pieces(pick);
  return true;
}

// Values so exact that the rounding of one uint8 term of the weights would show.
bool fine_values(Bits bits) { return bits == Bits::k6 || bits == Bits::k8; }

bool plan_key_parameters(DecodePlan& plan) {
  const TensorFormat& format = plan.key_format;
  plan.key_segments = format.depth_wise || format.group_depth == 0
                          ? 1
                          : (format.depth + format.group_depth - 1) / format.group_depth;
  plan.key_segment_depth = plan.key_segments == 1 ? format.depth : format.group_depth;
  if (format.spec.bits == Bits::k16) return true;
  if (format.depth_wise && format.group_rows < kBlockRows) return false;
  const int picks = format.depth_wise ? (format.depth + 63) / 64 : plan.key_segments;
  for (int n = 0; n < picks; ++n) {
    int at[64];
    for (int i = 0; i < 64; ++i) {
      const int channel = format.depth_wise ? 64 * n + i : n * format.group_depth;
      const int token = format.depth_wise ? 0 : row_of_slot(plan.key.order, i);
      at[i] = channel < format.head_dim ? parameter_index(format, token, channel) : -1;
    }
    if (!make_pick(at, plan.key_picks[n])) return false;
  }
  return true;
}

bool plan_value_parameters(DecodePlan& plan) {
  const TensorFormat& format = plan.value_format;
  plan.value_segments = format.depth_wise || format.group_depth == 0
                            ? 1
                            : std::max(kPageTokens / std::min(format.group_depth, 64),
                                       weight_parts(plan.value_terms));
  plan.value_segment_depth = kPageTokens / plan.value_segments;
  plan.value_blocks_share = false;
  if (format.spec.bits == Bits::k16) return true;
  if (format.depth_wise && format.group_rows < kBlockRows) return false;
  plan.value_blocks_share =
      format.depth_wise && format.group_rows >= padded_channels(format.head_dim);
  for (int block = 0; block < format.blocks; ++block) {
    for (int segment = 0; segment < plan.value_segments; ++segment) {
      int at[64];
      for (int i = 0; i < 64; ++i) {
        const int channel = 64 * block + (format.depth_wise ? 0 : row_of_slot(plan.value.order, i));
        const int token =
            format.depth_wise ? row_of_slot(plan.key.order, i) : segment * plan.value_segment_depth;
        at[i] = channel < format.head_dim ? parameter_index(format, token, channel) : -1;
      }
      if (!make_pick(at, plan.value_picks[block * plan.value_segments + segment])) return false;
    }
  }
  return true;
}

}  // namespace

int row_of_slot(RowOrder order, int slot) {
  const int u = slot >> 4;
  const int lane = slot & 15;
  const auto row = [](int j, int g, int r) { return 16 * j + 2 * g + r; };
  switch (order) {
    case RowOrder::kNatural:
      return slot;
    case RowOrder::kQuads:
      return row(lane & 3, 4 * (u >> 1) + (lane >> 2), u & 1);
    case RowOrder::kPairs:
      return row(2 * (lane & 1) + (u & 1), lane >> 1, u >> 1);
    case RowOrder::kHalves:
      return row(2 * (lane >> 3) + (u & 1), lane & 7, u >> 1);
    case RowOrder::kSingles:
      return row(u, lane & 7, lane >> 3);
  }
  return slot;
}

const DecodeKernels* decode_kernels(Isa isa) {
#if defined(__x86_64__)
  switch (isa) {
    case Isa::kPortable:
      return nullptr;
    case Isa::kAvx2:
      return &kDecodeKernelsAvx2;
    case Isa::kAvx512:
      return &kDecodeKernelsAvx512;
  }
#endif
  return nullptr;
}

bool make_decode_plan(const DecodeKernels& kernels, const PageFormat& format, int heads,
                      bool two_query_terms, DecodePlan& plan) {
  plan.key_format = format.key;
  plan.value_format = format.value;
  plan.page_bytes = format.page_bytes;
  plan.heads = heads;
  plan.output_stride = padded_channels(format.head_dim());
  plan.key_terms = two_query_terms ? 2 : 1;
  plan.value_terms = two_query_terms && fine_values(format.value.spec.bits) ? 2 : 1;
  plan.key = kernels.key(format.key, plan.key_terms);
  plan.value = kernels.value(format.value, plan.value_terms);
  if (plan.key.run == nullptr || plan.value.run == nullptr) return false;
  if (!plan_key_parameters(plan) || !plan_value_parameters(plan)) return false;
  // Row-wise scales of values are applied per page, to unscaled accumulators.
  const bool scaled_output = format.value.depth_wise;
  for (int slot = 0; slot < 64; ++slot) {
    plan.key_unit[slot] = std::ldexp(1.0F, -plan.key.shift[slot / 16]);
    plan.value_unit[slot] = std::ldexp(1.0F, -plan.value.shift[slot / 16]);
    plan.output_unit[slot] = scaled_output ? plan.value_unit[slot] : 1.0F;
    plan.value_row[slot] = static_cast<std::uint8_t>(row_of_slot(plan.value.order, slot));
    // Packing: byte 16 L + 4 u + k of the packed register is lane 4 L + k of vector u.
    const int token = row_of_slot(plan.key.order, slot);
    const int u = slot >> 4;
    const int lane = slot & 15;
    plan.weight_order[token] = static_cast<std::uint8_t>(16 * (lane >> 2) + 4 * u + (lane & 3));
    for (int run = 0; run < 4; ++run) {
      plan.weight_shuffle[run][token] =
          run == lane >> 2 ? static_cast<std::uint8_t>(4 * u + (lane & 3)) : std::uint8_t{0x80};
    }
    plan.token_slot[token] = static_cast<std::uint8_t>(slot);
    if (lane == 0) plan.second_half[u] = 0;
    plan.second_half[u] |= static_cast<std::uint16_t>((token / 32) << lane);
  }
  return true;
}

}  // namespace kvq
