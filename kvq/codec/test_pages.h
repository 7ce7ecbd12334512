// Rows of many kinds, and pages made of them. For tests only.
#pragma once

#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "kvq/codec/pack.h"

namespace kvq {

// Output `index` of splitmix64 started at `seed`.
inline std::uint64_t splitmix64(std::uint64_t seed, std::uint64_t index) {
  std::uint64_t z = seed + (index + 1) * 0x9e3779b97f4a7c15U;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9U;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebU;
  return z ^ (z >> 31);
}

using Rows = std::vector<float>;  // [64 tokens, head_dim]

enum class Data { kNormal, kHeavyTailed, kOutlierChannels, kHuge, kTiny, kConstant, kZero, kMixed };
constexpr Data kEveryData[] = {Data::kNormal, Data::kHeavyTailed, Data::kOutlierChannels,
                               Data::kHuge,   Data::kTiny,        Data::kConstant,
                               Data::kZero,   Data::kMixed};

inline float draw(Data data, int token, int channel, std::mt19937& random) {
  std::normal_distribution<float> normal;
  const float x = normal(random);
  switch (data) {
    case Data::kNormal:
      return x;
    case Data::kHeavyTailed:
      return x * x * x;
    case Data::kOutlierChannels:
      return channel % 29 == 3 ? 20 + 3 * x : x;
    case Data::kHuge:
      return x > 0 ? kHalfMax : -kHalfMax;
    case Data::kTiny:
      return x * 0x1p-22F;
    case Data::kConstant:
      return 3.140625F;
    case Data::kZero:
      return 0;
    // Token by token: zeros, a constant, signs, one spike, numbers around a large one.
    case Data::kMixed:
      switch (token % 5) {
        case 0:
          return 0;
        case 1:
          return -1.5F;
        case 2:
          return x > 0 ? 1.0F : -1.0F;
        case 3:
          return channel == 7 ? 100.0F : 0.0F;
        default:
          return 1000 + x;
      }
  }
  return 0;
}

inline std::vector<Half> make_rows(Data data, int head_dim, unsigned seed) {
  std::mt19937 random(seed);
  std::vector<Half> rows;
  for (int token = 0; token < kPageTokens; ++token) {
    for (int channel = 0; channel < head_dim; ++channel) {
      rows.push_back(to_half(draw(data, token, channel, random)));
    }
  }
  return rows;
}

inline Rows to_floats(const std::vector<Half>& halves) {
  Rows rows(halves.size());
  to_float(halves.data(), rows.data(), rows.size());
  return rows;
}

inline PageFormat make_format(const std::string& text, int head_dim) {
  return PageFormat::create(parse_layer_spec(text).value(), head_dim).value();
}

inline std::vector<std::byte> pack(const PageFormat& format, const std::vector<Half>& key,
                                   const std::vector<Half>& value, Isa isa = host_isa()) {
  std::vector<std::byte> page(format.page_bytes, std::byte{0xaa});
  pack_page(format, key.data(), value.data(), page.data(), isa);
  return page;
}

struct Unpacked {
  Rows key;
  Rows value;
};

inline Unpacked unpack(const PageFormat& format, const std::vector<std::byte>& page) {
  const auto count = static_cast<std::size_t>(kPageTokens * format.head_dim());
  Unpacked rows{Rows(count), Rows(count)};
  unpack_page(format, page.data(), rows.key.data(), rows.value.data());
  return rows;
}

}  // namespace kvq
