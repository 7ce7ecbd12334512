#include "kvq/attention/cuda/decode_layout.h"

#include <gtest/gtest.h>

#include "kvq/attention/cuda/decode.h"

namespace kvq::cuda {
namespace {

PageFormat format_of(const std::string& spec, int head_dim) {
  return PageFormat::create(parse_layer_spec(spec).value(), head_dim).value();
}

AttentionShape shape_of(int query_heads, int kv_heads, int head_dim) {
  return {.query_heads = query_heads, .kv_heads = kv_heads, .head_dim = head_dim, .scale = 1};
}

TEST(CudaDecodeLayout, SymmetricPage) {
  const PageFormat format = format_of("k4v2", 128);
  ASSERT_TRUE(is_symmetric_page(format));
  const DecodeParams params = layout_params(shape_of(32, 8, 128), format).value();
  EXPECT_EQ(params.heads, 4);
  EXPECT_EQ(params.head_tiles, 1);
  EXPECT_EQ(params.page_bytes, 6656);
  EXPECT_EQ(params.key_rotation, 128);
  // Sections of the page, as docs/page_format.md lists them.
  EXPECT_EQ(params.key.planes, 0);
  EXPECT_EQ(params.key.scales, 4096);
  EXPECT_EQ(params.value.planes, 4352);
  EXPECT_EQ(params.value.scales, 6400);
  EXPECT_EQ(params.value.block_bytes, 1024);
  EXPECT_FALSE(params.key.depth_wise);
  EXPECT_TRUE(params.value.depth_wise);
  EXPECT_EQ(params.key.steps, 8);
  EXPECT_EQ(params.value.steps, 4);
  EXPECT_EQ(params.value.row_groups, 2);
  EXPECT_EQ(params.key.depth_groups, 2);
  EXPECT_FLOAT_EQ(params.key.middle, 7.5F);
  EXPECT_EQ(params.value.minus_middle, 0xbe00be00U);  // -1.5 twice
}

TEST(CudaDecodeLayout, GroupedPages) {
  EXPECT_TRUE(is_grouped_page(format_of("k4v2", 128)));
  EXPECT_TRUE(is_grouped_page(format_of("k4:affine,v16", 64)));
  EXPECT_TRUE(is_grouped_page(format_of("k4:g32:channel:affine,v2:g32", 256)));
  EXPECT_TRUE(is_grouped_page(format_of("k4:g256:channel,v2:g256", 128)));
  EXPECT_TRUE(is_grouped_page(format_of("k4:g256,v2:g32:channel", 128)));
  EXPECT_FALSE(is_grouped_page(format_of("k4:g16,v2", 128)));
  EXPECT_FALSE(is_grouped_page(format_of("k4,v2:g16", 128)));
  EXPECT_FALSE(is_grouped_page(format_of("k4:channel:g16,v2:g16", 128)));
  EXPECT_FALSE(is_grouped_page(format_of("k4v2", 96)));
}

TEST(CudaDecodeLayout, OtherPages) {
  EXPECT_FALSE(is_symmetric_page(format_of("k4v2", 80)));
  EXPECT_FALSE(is_symmetric_page(format_of("k4v2", 192)));
  EXPECT_FALSE(is_symmetric_page(format_of("k4:g32,v2", 128)));
  EXPECT_FALSE(is_symmetric_page(format_of("k4:affine,v2", 128)));
  EXPECT_FALSE(is_symmetric_page(format_of("k4,v2:channel", 128)));
  EXPECT_TRUE(is_symmetric_page(format_of("k16v2", 128)));

  const PageFormat format = format_of("k3:g32:channel:affine:minmax:none,v5:affine", 80);
  const DecodeParams params = layout_params(shape_of(24, 2, 80), format).value();
  EXPECT_EQ(params.head_tiles, 1);  // 12 heads in one pass
  EXPECT_EQ(params.key_rotation, 1);
  EXPECT_EQ(params.value_rotation, 16);
  EXPECT_TRUE(params.key.depth_wise);
  EXPECT_TRUE(params.key.affine);
  EXPECT_EQ(params.key.group_rows, 32);
  EXPECT_EQ(params.key.row_groups, 2);
  EXPECT_EQ(params.key.steps, 5);
  EXPECT_EQ(params.value.row_groups, 2);
}

TEST(CudaDecodeLayout, HeadsInPasses) {
  EXPECT_EQ(tile_shape(shape_of(8, 1, 128)).columns, 1);
  EXPECT_EQ(tile_shape(shape_of(9, 1, 128)).columns, 2);
  EXPECT_EQ(tile_shape(shape_of(9, 1, 256)).columns, 1);
  EXPECT_EQ(layout_params(shape_of(16, 1, 256), format_of("k4v2", 256)).value().head_tiles, 2);
  EXPECT_EQ(tile_shape(shape_of(1, 1, 64)).head_blocks, 1);
  EXPECT_EQ(tile_shape(shape_of(1, 1, 96)).head_blocks, 2);
  EXPECT_EQ(tile_shape(shape_of(1, 1, 192)).head_blocks, 4);
}

TEST(CudaDecodeLayout, EvenWarps) {
  EXPECT_EQ(even_warps(64, 1584, 12), 1536);  // two blocks an item
  EXPECT_EQ(even_warps(8, 1584, 12), 1536);   // sixteen
  EXPECT_EQ(even_warps(256, 1584, 12), 1536);
  EXPECT_EQ(even_warps(1000, 1584, 12), 1584);  // a third would idle
  EXPECT_EQ(even_warps(2000, 1584, 12), 1584);
  EXPECT_EQ(even_warps(1, 1584, 12), 1584);
}

// Refused before any device is asked for.
TEST(CudaDecodeLayout, RefusesWhatItCannotDo) {
  const PageFormat format = format_of("k4v2", 128);
  const auto message = [&](const AttentionShape& shape, int max_sequences) {
    const Result<Decode> decode = Decode::create(shape, format, {.max_sequences = max_sequences});
    return decode ? std::string() : decode.error().message;
  };
  EXPECT_EQ(message(shape_of(34, 2, 128), 1),
            "attention: expected 1 to 16 query heads for each kv head, found 34 for 2");
  EXPECT_EQ(message(shape_of(9, 2, 128), 1),
            "attention: expected 1 to 16 query heads for each kv head, found 9 for 2");
  EXPECT_EQ(message(shape_of(8, 2, 64), 1),
            "attention: expected pages with head_dim 64, found 128");
  EXPECT_EQ(message(shape_of(8, 2, 128), 0),
            "attention: max_sequences: expected at least 1, found 0");
}

}  // namespace
}  // namespace kvq::cuda
