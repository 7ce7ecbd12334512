// Rows to packed pages and back.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kvq/base/cpu.h"
#include "kvq/base/half.h"
#include "kvq/codec/page_format.h"

namespace kvq {

// Rotates (if the spec says so), fits and packs one page of one kv head.
//   key, value  fp16 [64 tokens, head_dim], finite, unrotated
//   page        page_bytes, written whole (padding is zero), 128-byte aligned
// Every instruction set writes the same bytes: the arithmetic is IEEE binary32 in an order that
// does not depend on the vector width (fit.h).
void pack_page(const PageFormat& format, const Half* key, const Half* value, std::byte* page,
               Isa isa);

// The values that a page stands for, rotation undone, computed in binary32.
//   key, value  [64 tokens, head_dim]; either may be null.
void unpack_page(const PageFormat& format, const std::byte* page, float* key, float* value);

// The codes of a packed tensor, [64 tokens, head_dim]. Not for 16 bits.
void unpack_codes(const TensorFormat& format, const std::byte* page, std::uint8_t* codes);

}  // namespace kvq
