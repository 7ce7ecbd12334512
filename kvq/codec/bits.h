// The stored widths; apart from spec.h, so that device code can include it.
#pragma once

#include <cstdint>

namespace kvq {

// Tokens in a packed page.
inline constexpr int kPageTokens = 64;

// Stored width of one number. kTernary has three levels ("1.58 bits") and takes 1.6 bits; k16 is
// unquantized fp16 (its axis, group, parameters, fit and rotation mean nothing).
enum class Bits : std::uint8_t { k1, kTernary, k2, k3, k4, k5, k6, k8, k16 };

}  // namespace kvq
