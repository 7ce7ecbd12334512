// The stored widths; apart from spec.h, so that device code can include it.
#pragma once

#include <cstdint>

namespace kvq {

// Tokens in a packed page.
inline constexpr int kPageTokens = 64;

// Stored width of one number. kTernary has three levels ("1.58 bits") and takes 1.6 bits; k16 is
// unquantized fp16 (its axis, group, parameters, fit and rotation mean nothing).
enum class Bits : std::uint8_t { k1, kTernary, k2, k3, k4, k5, k6, k8, k16 };

// Levels of a code: 2^bits, 3 for ternary, 0 for k16.
constexpr int levels(Bits bits) {
  switch (bits) {
    case Bits::k1:
      return 2;
    case Bits::kTernary:
      return 3;
    case Bits::k2:
      return 4;
    case Bits::k3:
      return 8;
    case Bits::k4:
      return 16;
    case Bits::k5:
      return 32;
    case Bits::k6:
      return 64;
    case Bits::k8:
      return 256;
    case Bits::k16:
      break;
  }
  return 0;
}

}  // namespace kvq
