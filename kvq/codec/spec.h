// How the keys or the values of one layer are stored: TensorSpec, and its text form.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "kvq/base/status.h"
#include "kvq/codec/bits.h"

namespace kvq {

// What one scale belongs to.
enum class Axis : std::uint8_t {
  kToken,    // a token, over `group` of its channels (KIVI's "per token")
  kChannel,  // a channel, over `group` tokens (KIVI's "per channel")
};

// x = scale * (code - mid) + center, mid = (levels - 1) / 2.
enum class Parameters : std::uint8_t {
  kSymmetric,  // fp16 scale, center = 0
  kAffine,     // fp16 scale, fp16 center (the value of the middle code)
};

// How scale and center are chosen.
enum class Fit : std::uint8_t {
  kMinMax,      // the outer codes are the extreme values
  kMeanSquare,  // the range is shrunk to the least squared error
  kHqq,         // the range of kMinMax; the center by half-quadratic quantization: affine only
};

enum class Rotation : std::uint8_t {
  kNone,
  // The orthonormal Walsh-Hadamard transform over head_dim; over blocks of the largest power of two
  // that divides head_dim, where that is not a power of two itself.
  kHadamard,
};

// Defaults: the best measured for a bare width (docs/accuracy.md).
struct TensorSpec {
  Bits bits = Bits::k16;
  Axis axis = Axis::kToken;
  int group = 64;  // members that share a scale: 16, 32, 64, 128 or 256
  Parameters parameters = Parameters::kSymmetric;
  Fit fit = Fit::kMeanSquare;
  Rotation rotation = Rotation::kHadamard;

  friend bool operator==(const TensorSpec&, const TensorSpec&) = default;
};

struct LayerSpec {
  TensorSpec key;
  TensorSpec value;

  friend bool operator==(const LayerSpec&, const LayerSpec&) = default;
};

// The middle code, (levels - 1) / 2; codes are unsigned, 0 .. levels - 1.
inline float middle(Bits bits) { return 0.5F * static_cast<float>(levels(bits) - 1); }
// As typed: "1", "1.58", "2", ... "16".
std::string_view name(Bits bits);
// The same as a number: 1.58 for ternary.
double code_bits(Bits bits);
// Every width below 16 bits, narrowest first.
const std::vector<Bits>& packed_bits();

// "k4v2" or "k4:g32:channel:affine:mse:hadamard,v2:g64:token:symmetric": the widths, each followed
// by options in any order (g<group>, token|channel, symmetric|affine, minmax|mse|hqq,
// none|hadamard). An unknown, repeated or contradictory option is an error that lists what is
// allowed.
Result<LayerSpec> parse_layer_spec(std::string_view text);

// The shortest text that parse_layer_spec() reads back as `spec`.
std::string to_string(const LayerSpec& spec);
std::string to_string(const TensorSpec& spec, bool is_key);

// Largest power of two that divides head_dim: the length of one Hadamard transform.
int hadamard_block(int head_dim);

}  // namespace kvq
