// Vectors of KVQ_LANES lanes in GCC's vector notation: one source for every instruction set. Every
// function works lane by lane in IEEE binary32, so the number of lanes does not change a result.
#include <cstdint>
#include <utility>

namespace kvq {
namespace {

constexpr int kLanes = KVQ_LANES;

typedef float Floats __attribute__((vector_size(4 * KVQ_LANES)));
typedef std::int32_t Ints __attribute__((vector_size(4 * KVQ_LANES)));
typedef std::uint32_t Words __attribute__((vector_size(4 * KVQ_LANES)));
typedef std::uint8_t Bytes __attribute__((vector_size(4 * KVQ_LANES)));
// As they lie in memory: aligned like single numbers.
typedef Floats FloatsAt __attribute__((aligned(4), may_alias));
typedef Words WordsAt __attribute__((aligned(4), may_alias));

inline Floats load(const float* at) { return *reinterpret_cast<const FloatsAt*>(at); }
inline void store(float* at, Floats value) { *reinterpret_cast<FloatsAt*>(at) = value; }
inline Floats splat(float value) { return value - Floats{}; }
inline Ints bits(Floats value) { return reinterpret_cast<Ints>(value); }
inline Floats number(Ints value) { return reinterpret_cast<Floats>(value); }
inline Floats min(Floats a, Floats b) { return a < b ? a : b; }
inline Floats max(Floats a, Floats b) { return a < b ? b : a; }
inline Floats absolute(Floats a) { return number(bits(a) & 0x7fffffff); }
// A comparison's lanes are all ones or all zeros.
inline bool any(Ints lanes) {
  std::int32_t all = 0;
  for (int lane = 0; lane < kLanes; ++lane) all |= lanes[lane];
  return all != 0;
}

constexpr std::int32_t kSignBit = -0x7fffffff - 1;
// Adding 1.5 * 2^23 rounds |x| < 2^22 to an integer, ties to even, and leaves it in the low bits.
constexpr float kRounder = 12582912.0F;

template <int Distance, int... kLane>
inline Floats exchange(Floats value, std::integer_sequence<int, kLane...>) {
  return __builtin_shufflevector(value, value, (kLane ^ Distance)...);
}

// Lane l gets lane l ^ Distance; Distance is a power of two.
template <int Distance>
inline Floats exchange(Floats value) {
  return exchange<Distance>(value, std::make_integer_sequence<int, kLanes>{});
}

// 1 / value, 0 unless value > 0.
inline Floats inverse(Floats value) {
  const Floats reciprocal = 1.0F / value;
  return value > 0.0F ? reciprocal : Floats{};
}

// Limits to fp16's range and rounds to fp16, kept in binary32: adding 2^13 times the power of two
// at or below |x| (at least 2^-14, where subnormals begin) leaves 11 significant bits.
inline Floats round_to_half(Floats value) {
  const Floats limited = min(max(value, splat(-65504.0F)), splat(65504.0F));
  const Floats magnitude = absolute(limited);
  const Floats power = number(bits(magnitude) & 0x7f800000);
  const Floats rounder = max(power, splat(0x1p-14F)) * 8192.0F;
  const Floats rounded = (magnitude + rounder) - rounder;
  return number(bits(rounded) | (bits(limited) & kSignBit));
}

}  // namespace
}  // namespace kvq
