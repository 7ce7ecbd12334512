#include "kvq/codec/pack.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "kvq/codec/fit_reference.h"
#include "kvq/codec/metrics.h"
#include "kvq/codec/page_layout.h"
#include "kvq/codec/test_pages.h"

namespace kvq {
namespace {

// Every option, in an order that pairs them differently for K and for V.
std::vector<std::string> sampled_specs() {
  std::vector<std::string> keys;
  std::vector<std::string> values;
  for (const Bits bits : packed_bits()) {
    for (const char* axis : {"token", "channel"}) {
      for (const char* parameters : {"symmetric", "affine"}) {
        for (int group : {16, 32, 64, 128, 256}) {
          const std::size_t n = keys.size();
          const bool affine = std::string_view(parameters) == "affine";
          const char* fit = n % 7 == 0 ? "minmax" : affine && n % 2 == 1 ? "hqq" : "mse";
          const char* rotation = n % 3 == 0 ? "none" : "hadamard";
          const std::string options =
              fmt::format("{}:g{}:{}:{}:{}:{}", name(bits), group, axis, parameters, fit, rotation);
          keys.push_back("k" + options);
          values.push_back("v" + options);
        }
      }
    }
  }
  std::vector<std::string> specs;
  for (std::size_t n = 0; n < keys.size(); ++n) {
    specs.push_back(keys[n] + "," + values[(n * 37 + 11) % values.size()]);
  }
  return specs;
}

// Compares the page's K or V part with the scalar definition of the arithmetic.
void expect_reference(const TensorFormat& format, const std::byte* page,
                      const std::vector<Half>& rows) {
  Rows values = to_floats(rows);
  if (format.spec.rotation == Rotation::kHadamard) reference_hadamard(values, format.head_dim);
  const ReferenceTensor expected = reference_fit(format, values);
  std::vector<float> found(expected.scales.size());
  read_parameters(format, page + format.scales_offset, found.data());
  for (std::size_t i = 0; i < found.size(); ++i) {
    ASSERT_EQ(to_half(found[i]).bits, expected.scales[i].bits) << "scale of group " << i;
  }
  if (format.has_centers()) {
    read_parameters(format, page + format.centers_offset, found.data());
    for (std::size_t i = 0; i < found.size(); ++i) {
      ASSERT_EQ(found[i], to_float(expected.centers[i])) << "center of group " << i;
    }
  }
  std::vector<std::uint8_t> codes(expected.codes.size());
  unpack_codes(format, page, codes.data());
  for (std::size_t i = 0; i < codes.size(); ++i) {
    ASSERT_EQ(codes[i], expected.codes[i])
        << "token " << i / format.head_dim << " channel " << i % format.head_dim;
  }
}

TEST(PackPage, EveryInstructionSetEqualsTheScalarDefinition) {
  const int head_dims[] = {64, 80, 96, 128, 192, 256, 16};
  std::size_t n = 0;
  for (const std::string& text : sampled_specs()) {
    const int head_dim = head_dims[n % std::size(head_dims)];
    const Data key_data = kEveryData[n % std::size(kEveryData)];
    const Data value_data = kEveryData[(n / 3 + 5) % std::size(kEveryData)];
    ++n;
    SCOPED_TRACE(fmt::format("{} head_dim {}, data {} and {}", text, head_dim,
                             static_cast<int>(key_data), static_cast<int>(value_data)));
    const PageFormat format = make_format(text, head_dim);
    const auto key = make_rows(key_data, head_dim, 1);
    const auto value = make_rows(value_data, head_dim, 2);
    const auto portable = pack(format, key, value, Isa::kPortable);
    ASSERT_NO_FATAL_FAILURE(expect_reference(format.key, portable.data(), key));
    ASSERT_NO_FATAL_FAILURE(expect_reference(format.value, portable.data(), value));
    for (const Isa isa : runnable_isas()) {
      ASSERT_EQ(pack(format, key, value, isa), portable) << name(isa);
    }
  }
}

class RoundTrip : public testing::TestWithParam<Bits> {
 protected:
  std::string width() const { return std::string(name(GetParam())); }
  // One text for K and V.
  PageFormat format(const std::string& options, int head_dim = 128) const {
    return make_format(fmt::format("k{0}{1},v{0}{1}", width(), options), head_dim);
  }
};

std::string width_name(const testing::TestParamInfo<Bits>& parameter) {
  return parameter.param == Bits::kTernary ? "Ternary"
                                           : "Bits" + std::string(name(parameter.param));
}

INSTANTIATE_TEST_SUITE_P(Widths, RoundTrip, testing::ValuesIn(packed_bits()), width_name);

// Signal to noise ratio of a Gaussian at the optimal uniform quantizer of each width, dB.
double gaussian_snr(Bits bits) {
  switch (bits) {
    case Bits::k1:
      return 4.40;
    case Bits::kTernary:
      return 7.21;
    case Bits::k2:
      return 9.25;
    case Bits::k3:
      return 14.27;
    case Bits::k4:
      return 19.38;
    case Bits::k5:
      return 24.57;
    case Bits::k6:
      return 29.83;
    default:
      return 40.34;
  }
}

// Groups adapt to their own numbers, so they do better than one quantizer for all of them.
TEST_P(RoundTrip, GaussianBeatsTheOptimalFixedQuantizer) {
  const auto rows = make_rows(Data::kNormal, 128, 3);
  const Rows original = to_floats(rows);
  for (const char* options : {"", ":none", ":channel:affine", ":channel:none", ":affine:g128"}) {
    const PageFormat page_format = format(options);
    const Unpacked stored = unpack(page_format, pack(page_format, rows, rows));
    for (const Rows& result : {stored.key, stored.value}) {
      const double snr = measure_error(original.data(), result.data(), result.size()).snr_db;
      EXPECT_GT(snr, gaussian_snr(GetParam())) << options;
      EXPECT_LT(snr, gaussian_snr(GetParam()) + 6.5) << options;
    }
  }
}

TEST_P(RoundTrip, EveryNumberGetsTheNearestLevel) {
  const auto rows = make_rows(Data::kHeavyTailed, 80, 4);
  const Rows original = to_floats(rows);
  const int last = levels(GetParam()) - 1;
  for (const char* options : {":none", ":none:affine", ":none:minmax:channel:g128",
                              ":none:minmax:affine:channel", ":none:hqq:affine"}) {
    const PageFormat page_format = format(options, 80);
    const auto page = pack(page_format, rows, rows);
    const Unpacked stored = unpack(page_format, page);
    std::vector<std::uint8_t> codes(original.size());
    for (const TensorFormat& tensor : {page_format.key, page_format.value}) {
      unpack_codes(tensor, page.data(), codes.data());
      const Rows& result = tensor.is_key ? stored.key : stored.value;
      for (int i = 0; i < 64 * 80; ++i) {
        Half scale;
        const int index = parameter_index(tensor, i / 80, i % 80);
        std::memcpy(&scale, page.data() + tensor.scales_offset + 2 * index, 2);
        const float half_step = 0.5F * to_float(scale) * 1.001F;
        const float error = original[i] - result[i];
        ASSERT_TRUE(codes[i] == 0 || error > -half_step) << options << " at " << i;
        ASSERT_TRUE(codes[i] == last || error < half_step) << options << " at " << i;
      }
    }
  }
}

std::vector<Half> to_halves(const Rows& rows) {
  std::vector<Half> halves(rows.size());
  to_half(rows.data(), halves.data(), halves.size());
  return halves;
}

// Numbers that lie on levels come back exactly.
TEST_P(RoundTrip, LevelsAreExact) {
  std::mt19937 random(5);
  const int last = levels(GetParam()) - 1;
  for (const char* options : {":none", ":none:minmax", ":none:affine", ":none:affine:minmax"}) {
    const PageFormat page_format = format(options);
    std::vector<Half> rows;
    for (int i = 0; i < kPageTokens * 128; ++i) {
      // Each group holds both outer levels.
      const int code = i % 16 == 0   ? 0
                       : i % 16 == 1 ? last
                                     : static_cast<int>(random() % (last + 1));
      rows.push_back(to_half(0.25F * (static_cast<float>(code) - middle(GetParam()))));
    }
    const Unpacked stored = unpack(page_format, pack(page_format, rows, rows));
    // The least squares center of an affine fit may be some 2^-24 off.
    EXPECT_EQ(to_halves(stored.key), rows) << options;
    EXPECT_EQ(to_halves(stored.value), rows) << options;
  }
}

TEST_P(RoundTrip, ConstantGroupsAreFiniteAndAffineOnesExact) {
  for (const float constant : {0.0F, 3.140625F, -0.333251953125F, 0x1p-24F, -30000.0F}) {
    const std::vector<Half> rows(kPageTokens * 128, to_half(constant));
    for (const char* fit : {":mse", ":minmax", ":hqq"}) {
      const PageFormat affine = format(fmt::format(":none:affine{}", fit));
      const Unpacked exact = unpack(affine, pack(affine, rows, rows));
      EXPECT_EQ(exact.key, to_floats(rows)) << constant;
      EXPECT_EQ(exact.value, to_floats(rows)) << constant;
    }
    for (const char* fit : {":mse", ":minmax"}) {
      const PageFormat symmetric = format(fmt::format(":none{}", fit));
      const Unpacked near = unpack(symmetric, pack(symmetric, rows, rows));
      for (std::size_t i = 0; i < rows.size(); ++i) {
        // A scale is rounded to fp16: 11 bits, or a multiple of 2^-24.
        ASSERT_NEAR(near.key[i], constant, std::abs(constant) * 0x1p-10F + 127.5F * 0x1p-25F);
        ASSERT_NEAR(near.value[i], constant, std::abs(constant) * 0x1p-10F + 127.5F * 0x1p-25F);
      }
    }
  }
}

// Rotated rows of large numbers exceed what an fp16 scale or center can hold.
TEST_P(RoundTrip, ParametersSaturateInsteadOfOverflowing) {
  for (const char* options :
       {"", ":affine", ":minmax", ":affine:minmax:channel", ":affine:hqq", ":channel"}) {
    const PageFormat page_format = format(options);
    const std::vector<Half> rows(kPageTokens * 128, to_half(kHalfMax));
    const auto page = pack(page_format, rows, rows);
    for (const TensorFormat& tensor : {page_format.key, page_format.value}) {
      std::vector<float> scales(kMaxParameters);
      read_parameters(tensor, page.data() + tensor.scales_offset, scales.data());
      for (const float scale : scales) ASSERT_LE(std::abs(scale), kHalfMax);
    }
    for (const float x : unpack(page_format, page).value) ASSERT_TRUE(std::isfinite(x));
  }
}

TEST(PackPage, OneBitScaleSaturates) {
  // The rotation gathers a row of equal numbers into its first channel: 65504 * sqrt(128).
  const PageFormat format = make_format("k1,v1:affine", 128);
  const std::vector<Half> rows(kPageTokens * 128, to_half(kHalfMax));
  const auto page = pack(format, rows, rows);
  std::vector<float> found(static_cast<std::size_t>(row_group_count(format.key) * 2));
  read_parameters(format.value, page.data() + format.value.scales_offset, found.data());
  EXPECT_EQ(found[0], kHalfMax);
  read_parameters(format.value, page.data() + format.value.centers_offset, found.data());
  EXPECT_EQ(found[0], kHalfMax);
}

TEST(PackPage, SubnormalScalesWork) {
  // 15 levels of 2^-24, the least scale.
  const PageFormat format = make_format("k4:none:minmax,v4:none:minmax:affine", 64);
  std::vector<Half> rows(kPageTokens * 64);
  for (int i = 0; i < kPageTokens * 64; ++i) {
    rows[i] = to_half(static_cast<float>(i % 16) * 0x1p-24F);
  }
  const Unpacked stored = unpack(format, pack(format, rows, rows));
  // Center 7.5 * 2^-24 is rounded to 8 * 2^-24: half a level off, and the lowest one is lost.
  for (int i = 0; i < kPageTokens * 64; ++i) {
    ASSERT_LE(std::abs(stored.value[i] - to_float(rows[i])), 0.5F * 0x1p-24F) << i;
    // Symmetric: the scale, 15 / 7.5 = 2, is exact; levels are odd multiples of 2^-24.
    ASSERT_LE(std::abs(stored.key[i] - to_float(rows[i])), 0x1p-24F) << i;
  }
}

TEST(PackPage, SixteenBitsAreExactAndLieDepthMajor) {
  for (const int head_dim : {16, 80, 128}) {
    const PageFormat format = make_format("k16v16", head_dim);
    const auto key = make_rows(Data::kNormal, head_dim, 6);
    const auto value = make_rows(Data::kHeavyTailed, head_dim, 7);
    const auto page = pack(format, key, value);
    const Unpacked stored = unpack(format, page);
    EXPECT_EQ(stored.key, to_floats(key));
    EXPECT_EQ(stored.value, to_floats(value));
    const auto number = [&](std::size_t offset, int index) {
      Half half;
      std::memcpy(&half, page.data() + offset + 2 * index, 2);
      return half;
    };
    const int token = 37;
    const int channel = head_dim - 3;
    EXPECT_EQ(number(0, channel * 64 + token), key[token * head_dim + channel]);
    EXPECT_EQ(number(format.value.planes_offset, (channel / 64 * 64 + token) * 64 + channel % 64),
              value[token * head_dim + channel]);
    const int padding = padded_channels(head_dim) - head_dim;
    if (padding > 0) {
      EXPECT_EQ(number(format.value.planes_offset, (head_dim / 64 * 64) * 64 + 63).bits, 0);
    }
  }
}

TEST(PackPage, MixedWidthsRotateOnlyWhatIsPacked) {
  const PageFormat format = make_format("k16v8", 64);
  const auto rows = make_rows(Data::kNormal, 64, 8);
  const Unpacked stored = unpack(format, pack(format, rows, rows));
  const Rows original = to_floats(rows);
  EXPECT_EQ(stored.key, original);
  EXPECT_GT(measure_error(original.data(), stored.value.data(), original.size()).snr_db, 40);
}

}  // namespace
}  // namespace kvq
