// Fits against tests/fixtures/fits: the codes and numbers of the packages that transformers'
// quantized caches use, for one page of 64 channels.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "kvq/codec/test_pages.h"

namespace kvq {
namespace {

constexpr int kChannels = 64;
constexpr int kNumbers = kPageTokens * kChannels;

std::vector<std::uint8_t> decode_base64(const std::string& text) {
  constexpr std::string_view kDigits =
      "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::vector<std::uint8_t> bytes;
  std::uint32_t pending = 0;
  int count = 0;
  for (const char digit : text.substr(0, text.find('='))) {
    pending = pending << 6 | static_cast<std::uint32_t>(kDigits.find(digit));
    count += 6;
    if (count < 8) continue;
    count -= 8;
    bytes.push_back(static_cast<std::uint8_t>(pending >> count));
  }
  return bytes;
}

std::vector<float> decode_floats(const std::string& text) {
  const auto bytes = decode_base64(text);
  std::vector<float> numbers(bytes.size() / sizeof(float));
  std::memcpy(numbers.data(), bytes.data(), bytes.size());
  return numbers;
}

// [64 tokens, 64 channels], as draw_rows() of make_fixtures.py.
std::vector<Half> draw_rows(const std::string& data, bool token_axis) {
  std::vector<Half> rows;
  rows.reserve(kNumbers);
  for (int i = 0; i < kNumbers; ++i) {
    const std::uint64_t fields =
        splitmix64(data == "normal" ? 1 : 2, static_cast<std::uint64_t>(i));
    int sum = -131070;
    for (int field = 0; field < 4; ++field)
      sum += static_cast<int>(fields >> (16 * field) & 0xffffU);
    float x = static_cast<float>(sum) / 32768;
    if (data == "outliers") {
      const int line = token_axis ? i / kChannels : i % kChannels;
      if (i % kChannels % 29 == 3) x = 20 + 3 * x;
      if (line == 4 || line == 5) x = 3.140625F;
    }
    rows.push_back(to_half(x));
  }
  return rows;
}

struct Fixture {
  explicit Fixture(const nlohmann::json& entry)
      : fit(entry[0]),
        data(entry[1]),
        options(entry[2].get<std::string>() +
                (fit.starts_with("hqq") && fit != "hqq minmax" ? ":hqq" : ":minmax")),
        rows(draw_rows(data, options.find("token") != std::string::npos)),
        format(make_format("k" + options + ",v" + options, kChannels)) {
    const auto packed = decode_base64(entry[3]);
    const int bits = options[0] - '0';
    for (int i = 0; i < kNumbers; ++i) {
      codes.push_back(packed[i * bits / 8] >> (i * bits % 8) & ((1 << bits) - 1));
    }
    scales = decode_floats(entry[4]);
    lowest = decode_floats(entry[5]);
  }
  // Index of the group of number i.
  int group(int i) const {
    const int tokens = format.key.group_rows;
    const int channels = format.key.group_depth;
    return i / kChannels / tokens * (kChannels / channels) + i % kChannels / channels;
  }

  std::string fit;
  std::string data;
  std::string options;
  std::vector<Half> rows;
  PageFormat format;
  std::vector<int> codes;
  std::vector<float> scales;
  std::vector<float> lowest;
};

// What our page and the package make of the numbers outside constant groups.
struct Agreement {
  int compared = 0;
  int equal_codes = 0;
  int greatest_step = 0;    // between codes
  double center_shift = 0;  // greatest difference of numbers of equal code, in steps
  // Whether numbers differ by no more than their codes and the fp16 rounding of scale and center
  // say.
  bool only_rounding = true;
  double constant = 0;  // greatest difference of numbers in constant groups

  double fraction() const { return static_cast<double>(equal_codes) / compared; }
};

Agreement compare(const Fixture& fixture, const TensorFormat& tensor, const std::byte* page,
                  const Rows& stored) {
  const double middle_code = middle(tensor.spec.bits);
  std::vector<std::uint8_t> codes(kNumbers);
  unpack_codes(tensor, page, codes.data());
  Agreement result;
  for (int i = 0; i < kNumbers; ++i) {
    const double scale = fixture.scales[fixture.group(i)];
    const double lowest = fixture.lowest[fixture.group(i)];
    const double difference = std::abs(stored[i] - (scale * fixture.codes[i] + lowest));
    // hqq takes 1 for the scale of a constant group, quanto 0.
    if (fixture.data == "outliers" && (scale == 0 || scale == 1)) {
      result.constant = std::max(result.constant, difference);
      continue;
    }
    const int step = std::abs(codes[i] - fixture.codes[i]);
    ++result.compared;
    result.equal_codes += step == 0 ? 1 : 0;
    result.greatest_step = std::max(result.greatest_step, step);
    if (step == 0) result.center_shift = std::max(result.center_shift, difference / scale);
    const double reach = scale * middle_code + std::abs(lowest + scale * middle_code);
    result.only_rounding &= difference <= scale * step + reach * 0x1p-11;
  }
  return result;
}

// The least fraction of equal codes. Codes differ where the fp16 scale and center move a number
// across the border of two codes: more often the narrower a step is against the range. hqq's center
// may also come from one round more or less, or from many where all groups stop together.
double least_fraction(const Fixture& fixture, Bits bits) {
  if (fixture.fit == "hqq together") return 0.98;
  if (fixture.fit == "hqq") return bits == Bits::k8 ? 0.96 : 0.99;
  return bits == Bits::k8 ? 0.97 : 0.998;
}

void expect_agreement(const Fixture& fixture) {
  const auto page = pack(fixture.format, fixture.rows, fixture.rows);
  const Unpacked stored = unpack(fixture.format, page);
  for (const TensorFormat& tensor : {fixture.format.key, fixture.format.value}) {
    const Agreement found =
        compare(fixture, tensor, page.data(), tensor.is_key ? stored.key : stored.value);
    ASSERT_GE(found.compared, kNumbers - 2 * kChannels);
    EXPECT_GE(found.fraction(), least_fraction(fixture, tensor.spec.bits));
    EXPECT_LE(found.greatest_step, 1);
    EXPECT_EQ(found.constant, 0);
    if (tensor.spec.fit == Fit::kHqq) {
      EXPECT_LE(found.center_shift, 0.5);
    } else {
      EXPECT_TRUE(found.only_rounding);
    }
  }
}

TEST(FitFixtures, PackagesAgree) {
  std::ifstream file(KVQ_SOURCE_DIR "/tests/fixtures/fits/fits.json");
  const auto fixtures = nlohmann::json::parse(file);
  const auto& cases = fixtures.at("cases");
  ASSERT_EQ(cases.size(), 52);
  for (const auto& entry : cases) {
    const Fixture fixture(entry);
    SCOPED_TRACE(fixture.fit + " " + fixture.data + " " + fixture.options);
    ASSERT_NO_FATAL_FAILURE(expect_agreement(fixture));
  }
}

}  // namespace
}  // namespace kvq
