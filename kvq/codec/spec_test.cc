#include "kvq/codec/spec.h"

#include <gtest/gtest.h>

#include <string>

namespace kvq {
namespace {

TEST(Spec, BareWidthsTakeTheDefaults) {
  const LayerSpec spec = parse_layer_spec("k4v2").value();
  EXPECT_EQ(spec.key.bits, Bits::k4);
  EXPECT_EQ(spec.value.bits, Bits::k2);
  EXPECT_EQ(spec.key.axis, Axis::kToken);
  EXPECT_EQ(spec.key.group, 64);
  EXPECT_EQ(spec.key.parameters, Parameters::kSymmetric);
  EXPECT_EQ(spec.key.fit, Fit::kMeanSquare);
  EXPECT_EQ(spec.key.rotation, Rotation::kHadamard);
  EXPECT_EQ(parse_layer_spec("k16v1.58").value().value.bits, Bits::kTernary);
}

TEST(Spec, WidthsAsNumbers) {
  EXPECT_EQ(code_bits(Bits::k1), 1);
  EXPECT_EQ(code_bits(Bits::kTernary), 1.58);
  EXPECT_EQ(code_bits(Bits::k16), 16);
}

TEST(Spec, OptionsComeInAnyOrder) {
  const LayerSpec spec =
      parse_layer_spec("k4:g32:channel:affine:minmax:none,v2:symmetric:token:g128").value();
  const TensorSpec key{Bits::k4,     Axis::kChannel, 32, Parameters::kAffine,
                       Fit::kMinMax, Rotation::kNone};
  EXPECT_EQ(spec.key, key);
  EXPECT_EQ(spec.value.group, 128);
  EXPECT_EQ(spec.key, parse_layer_spec("k4:none:affine:g32:minmax:channel,v2").value().key);
}

TEST(Spec, EverySpecReadsBackFromItsText) {
  for (const Bits bits : packed_bits()) {
    for (const Axis axis : {Axis::kToken, Axis::kChannel}) {
      for (const int group : {16, 32, 64, 128, 256}) {
        for (const Parameters parameters : {Parameters::kSymmetric, Parameters::kAffine}) {
          for (const Fit fit : {Fit::kMinMax, Fit::kMeanSquare, Fit::kHqq}) {
            if (fit == Fit::kHqq && parameters == Parameters::kSymmetric) continue;
            for (const Rotation rotation : {Rotation::kNone, Rotation::kHadamard}) {
              const TensorSpec tensor{bits, axis, group, parameters, fit, rotation};
              for (const LayerSpec& spec :
                   {LayerSpec{tensor, {}}, LayerSpec{{}, tensor}, LayerSpec{tensor, tensor}}) {
                const auto back = parse_layer_spec(to_string(spec));
                ASSERT_TRUE(back) << back.error().message;
                ASSERT_EQ(*back, spec) << to_string(spec);
              }
            }
          }
        }
      }
    }
  }
}

TEST(Spec, TextIsTheShortest) {
  for (const char* text :
       {"k4v2", "k16v16", "k1.58v1.58", "k4:g32,v2", "k4,v2:channel:affine", "k16,v8:none",
        "k8:g256:channel:affine:minmax:none,v16", "k2,v2:affine:hqq"}) {
    EXPECT_EQ(to_string(parse_layer_spec(text).value()), text);
  }
  TensorSpec unquantized;
  unquantized.group = 32;  // means nothing at 16 bits
  EXPECT_EQ(to_string(unquantized, false), "v16");
}

std::string error_of(const char* text) {
  const auto spec = parse_layer_spec(text);
  return spec ? "no error" : spec.error().message;
}

TEST(Spec, ErrorsNameTheOptionAndWhatIsAllowed) {
  EXPECT_EQ(error_of("k7v2"),
            "cache format 'k7v2': unknown width 'k7', expected k followed by 1, 1.58, 2, 3, 4, 5, "
            "6, 8 or 16");
  EXPECT_EQ(error_of("k4:lloyd,v2"),
            "cache format 'k4:lloyd,v2': unknown option 'lloyd' of k, expected g16, g32, g64, g128 "
            "or g256; token or channel; symmetric or affine; minmax, mse or hqq; none or hadamard");
  EXPECT_NE(error_of("k4,v2:g48").find("unknown option 'g48' of v"), std::string::npos);
  EXPECT_EQ(error_of("k4:g32:token:g32,v2"),
            "cache format 'k4:g32:token:g32,v2': option 'g32' of k is repeated");
  EXPECT_EQ(
      error_of("k4,v2:token:channel"),
      "cache format 'k4,v2:token:channel': options 'token' and 'channel' of v contradict each "
      "other");
  EXPECT_EQ(
      error_of("k4,v2:minmax:affine:hqq"),
      "cache format 'k4,v2:minmax:affine:hqq': options 'minmax' and 'hqq' of v contradict each "
      "other");
  EXPECT_EQ(
      error_of("k4:hqq,v2"),
      "cache format 'k4:hqq,v2': option 'hqq' of k optimizes a center, expected 'affine' beside "
      "it");
  EXPECT_EQ(error_of("k4,v2:symmetric:hqq"),
            "cache format 'k4,v2:symmetric:hqq': option 'hqq' of v optimizes a center, expected "
            "'affine' beside it");
  EXPECT_EQ(error_of("k16:g32,v4"),
            "cache format 'k16:g32,v4': k16 is unquantized and takes no options, found 'g32'");
  EXPECT_EQ(error_of("k4"),
            "cache format 'k4': expected keys and values, for example k4v2 or k4:g32:channel,v2");
  EXPECT_EQ(error_of("k4v2:g32"),
            "cache format 'k4v2:g32': options need the long form, for example "
            "k4:g32:channel,v2:g64");
  EXPECT_EQ(error_of("v4,k2"), "cache format 'v4,k2': expected k<width>, found 'v4'");
}

TEST(Spec, MalformedTextIsAnError) {
  for (const char* text :
       {"",       "k",       "v",      "kv",         "k4v",        "k4,",    "k4,v2,", "k4v2v2",
        "K4V2",   "k4 v2",   "k4:,v2", "k4::g32,v2", "k4:g32:,v2", "k4:g32", "4v2",    "k04v2",
        "k4,v2:", "k16:,v2", ",",      "k4,k2",      "k1.580v2",   "k4v2,v2"}) {
    EXPECT_NE(error_of(text), "no error") << text;
  }
}

TEST(Spec, LevelsAndMiddle) {
  EXPECT_EQ(levels(Bits::kTernary), 3);
  EXPECT_EQ(middle(Bits::kTernary), 1.0F);
  EXPECT_EQ(levels(Bits::k8), 256);
  EXPECT_EQ(middle(Bits::k4), 7.5F);
  EXPECT_EQ(hadamard_block(80), 16);
  EXPECT_EQ(hadamard_block(128), 128);
}

}  // namespace
}  // namespace kvq
