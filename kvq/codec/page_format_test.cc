#include "kvq/codec/page_format.h"

#include <gtest/gtest.h>

#include <cstring>
#include <set>
#include <string>
#include <vector>

#include "kvq/codec/page_layout.h"

namespace kvq {
namespace {

PageFormat make_format(const std::string& text, int head_dim) {
  return PageFormat::create(parse_layer_spec(text).value(), head_dim).value();
}

TEST(PageFormat, SizesOfCommonFormats) {
  struct Case {
    const char* text;
    std::size_t page_bytes;
    double bits;
  };
  for (const Case& entry :
       {Case{"k8:channel:affine,v4:affine", 13312, 6.5},
        Case{"k4:channel:affine,v2:affine", 7168, 3.5},
        Case{"k4:g128:channel:affine,v2:g128:affine", 6656, 3.25}, Case{"k4v2", 6656, 3.25},
        Case{"k1.58:channel:affine,v1.58:affine", 4352, 2.125}, Case{"k16v16", 32768, 16}}) {
    const PageFormat format = make_format(entry.text, 128);
    EXPECT_EQ(format.page_bytes, entry.page_bytes) << entry.text;
    EXPECT_DOUBLE_EQ(format.effective_bits(), entry.bits) << entry.text;
    EXPECT_EQ(to_string(format.spec()), entry.text);
  }
}

TEST(PageFormat, RefusesWhatThePageCannotHold) {
  for (const int head_dim : {0, -64, 8, 72, 272}) {
    const auto format = PageFormat::create({}, head_dim);
    ASSERT_FALSE(format);
    EXPECT_EQ(
        format.error().message,
        fmt::format("head_dim: expected a multiple of 16 from 16 to 256, found {}", head_dim));
  }
  LayerSpec spec = parse_layer_spec("k4v2").value();
  spec.value.group = 48;
  const auto format = PageFormat::create(spec, 64);
  ASSERT_FALSE(format);
  EXPECT_EQ(format.error().message,
            "group of the values: expected 16, 32, 64, 128 or 256, found 48");
  spec.value.group = 64;
  spec.key.fit = Fit::kHqq;
  const auto centerless = PageFormat::create(spec, 64);
  ASSERT_FALSE(centerless);
  EXPECT_EQ(centerless.error().message,
            "fit of the keys: hqq optimizes a center, expected affine parameters, found symmetric");
}

TEST(PageFormat, OptionsMeanNothingAtSixteenBits) {
  LayerSpec spec = parse_layer_spec("k16v16").value();
  spec.key.group = 7;
  spec.value.parameters = Parameters::kAffine;
  const PageFormat format = PageFormat::create(spec, 64).value();
  EXPECT_EQ(format.spec(), LayerSpec{});
  EXPECT_EQ(format.page_bytes, 2 * 64 * 64 * 2);
}

// Every group has a place of its own, which all its members share.
TEST(PageFormat, ParameterIndexIsAGroup) {
  for (const char* options : {":token", ":channel"}) {
    for (const int group : {16, 32, 64, 128, 256}) {
      for (int head_dim = 16; head_dim <= 256; head_dim += 16) {
        const PageFormat format =
            make_format(fmt::format("k4{0}:g{1},v4{0}:g{1}", options, group), head_dim);
        for (const TensorFormat& tensor : {format.key, format.value}) {
          SCOPED_TRACE(fmt::format("{} g{} {} key {}", options, group, head_dim, tensor.is_key));
          std::set<int> used;
          const int depth_groups = depth_group_count(tensor);
          std::vector<int> index_of_group(
              static_cast<std::size_t>(row_group_count(tensor) * depth_groups), -1);
          for (int token = 0; token < kPageTokens; ++token) {
            for (int channel = 0; channel < head_dim; ++channel) {
              const int row = tensor.is_key ? token : channel;
              const int depth = tensor.is_key ? channel : token;
              const int index = parameter_index(tensor, token, channel);
              int& known = index_of_group[row / tensor.group_rows * depth_groups +
                                          depth / tensor.group_depth];
              if (known < 0) {
                known = index;
                ASSERT_TRUE(used.insert(index).second) << token << " " << channel;
                ASSERT_GE(index, 0);
                ASSERT_LT(index, tensor.parameter_count);
              }
              ASSERT_EQ(index, known) << token << " " << channel;
            }
          }
        }
      }
    }
  }
}

// One code set, all others zero: it appears where plane_field() says.
TEST(PageFormat, PlaneFieldSaysWhereACodeLies) {
  for (const Bits bits : {Bits::k1, Bits::k2, Bits::k3, Bits::k4, Bits::k5, Bits::k6, Bits::k8}) {
    const auto [low, high] = planes(bits);
    constexpr int kDepth = 64;
    for (int row = 0; row < kBlockRows; row += 3) {
      for (int depth = row % 5; depth < kDepth; depth += 7) {
        std::vector<std::uint32_t> words(kDepth / 4 * kBlockRows);
        const auto code = static_cast<std::uint32_t>(levels(bits) - 1);
        words[depth / 4 * kBlockRows + row] = code << (8 * (depth % 4));
        std::vector<std::byte> block(static_cast<std::size_t>(8 * (low + high) * kDepth));
        write_block(bits, words.data(), kDepth, block.data());
        std::vector<std::byte> expected(block.size());
        for (const auto& [width, base] : {std::pair{low, 0}, std::pair{high, 8 * low * kDepth}}) {
          if (width == 0) continue;
          const PlaneField field = plane_field(width, row, depth / 4);
          expected[base + field.word + depth % 4] |=
              static_cast<std::byte>(((1 << width) - 1) << field.bit);
        }
        ASSERT_EQ(block, expected) << name(bits) << " row " << row << " depth " << depth;
      }
    }
  }
}

}  // namespace
}  // namespace kvq
