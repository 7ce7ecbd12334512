// Pages against tests/fixtures/page_format: hashes of pages that another implementation packed.
#include "kvq/codec/page_layout.h"

#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "kvq/codec/test_pages.h"

namespace kvq {
namespace {

std::string fnv1a(const std::byte* begin, const std::byte* end) {
  std::uint64_t value = 0xcbf29ce484222325U;
  for (; begin != end; ++begin) {
    value = (value ^ std::to_integer<std::uint64_t>(*begin)) * 0x100000001b3U;
  }
  return fmt::format("{:016x}", value);
}

struct DrawnTensor {
  std::vector<std::uint8_t> codes;  // [64 tokens, head_dim]
  std::vector<std::uint32_t> words;
  std::vector<Half> scales;  // [token groups, channel groups]
  std::vector<Half> centers;
  int channel_groups = 0;
};

std::vector<Half> draw_halves(std::uint64_t seed, int count) {
  std::vector<Half> result;
  for (int i = 0; i < count; ++i) {
    auto bits = static_cast<std::uint16_t>(splitmix64(seed, static_cast<std::uint64_t>(i)));
    if ((bits & 0x7c00U) == 0x7c00U) bits ^= 0x4000U;
    result.push_back({bits});
  }
  return result;
}

DrawnTensor draw_tensor(const TensorFormat& format, std::uint64_t seed) {
  DrawnTensor tensor;
  const int head_dim = format.head_dim;
  const auto levels_of_code = static_cast<std::uint64_t>(levels(format.spec.bits));
  tensor.codes.resize(static_cast<std::size_t>(kPageTokens * head_dim));
  tensor.words.resize(static_cast<std::size_t>(format.blocks * format.depth / 4 * kBlockRows));
  for (int token = 0; token < kPageTokens; ++token) {
    for (int channel = 0; channel < head_dim; ++channel) {
      const int at = token * head_dim + channel;
      const auto code = static_cast<std::uint8_t>(splitmix64(seed, static_cast<std::uint64_t>(at)) %
                                                  levels_of_code);
      tensor.codes[at] = code;
      const int row = format.is_key ? token : channel;
      const int depth = format.is_key ? channel : token;
      const int quad = row / kBlockRows * (format.depth / 4) + depth / 4;
      tensor.words[quad * kBlockRows + row % kBlockRows] |= std::uint32_t{code}
                                                            << (8 * (depth % 4));
    }
  }
  const int group_tokens = format.is_key ? format.group_rows : format.group_depth;
  const int group_channels = format.is_key ? format.group_depth : format.group_rows;
  tensor.channel_groups = (head_dim + group_channels - 1) / group_channels;
  const int count = kPageTokens / group_tokens * tensor.channel_groups;
  tensor.scales = draw_halves(seed + 1, count);
  tensor.centers = draw_halves(seed + 2, count);
  return tensor;
}

void write_drawn(const TensorFormat& format, const DrawnTensor& tensor, std::byte* page) {
  const int row_stride = format.is_key ? tensor.channel_groups : 1;
  const int depth_stride = format.is_key ? 1 : tensor.channel_groups;
  write_tensor(format, tensor.words.data(), {tensor.scales.data(), row_stride, depth_stride},
               {tensor.centers.data(), row_stride, depth_stride}, page);
}

TEST(PageLayout, EqualsTheReferenceImplementation) {
  std::ifstream file(KVQ_SOURCE_DIR "/tests/fixtures/page_format/page_formats.json");
  const auto fixtures = nlohmann::json::parse(file);
  const auto& cases = fixtures.at("cases");
  ASSERT_EQ(cases.size(), 800);
  for (const auto& entry : cases) {
    const int head_dim = entry[0];
    const std::string text = entry[1];
    const std::uint64_t seed = entry[2];
    const std::vector<std::size_t> offsets = entry[3];
    const std::vector<std::string> hashes = entry[4];
    SCOPED_TRACE(fmt::format("{} head_dim {}", text, head_dim));
    const PageFormat format = PageFormat::create(parse_layer_spec(text).value(), head_dim).value();
    const std::vector<std::size_t> found{format.key.planes_offset,   format.key.scales_offset,
                                         format.key.centers_offset,  format.value.planes_offset,
                                         format.value.scales_offset, format.value.centers_offset,
                                         format.page_bytes};
    ASSERT_EQ(found, offsets);

    const DrawnTensor key = draw_tensor(format.key, seed);
    const DrawnTensor value = draw_tensor(format.value, seed + 5);
    std::vector<std::byte> page(format.page_bytes);
    write_drawn(format.key, key, page.data());
    write_drawn(format.value, value, page.data());
    for (std::size_t section = 0; section < hashes.size(); ++section) {
      ASSERT_EQ(fnv1a(&page[0] + offsets[section], &page[0] + offsets[section + 1]),
                hashes[section])
          << "section " << section << " of K planes, scales, centers, V planes, scales, centers";
    }
    std::vector<std::uint8_t> codes(key.codes.size());
    unpack_codes(format.key, page.data(), codes.data());
    ASSERT_EQ(codes, key.codes);
    unpack_codes(format.value, page.data(), codes.data());
    ASSERT_EQ(codes, value.codes);
  }
}

}  // namespace
}  // namespace kvq
