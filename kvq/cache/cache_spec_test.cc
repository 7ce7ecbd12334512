#include "kvq/cache/cache_spec.h"

#include <gtest/gtest.h>

#include "kvq/cache/test_model.h"
#include "kvq/cache/view.h"

namespace kvq {
namespace {

std::string validation_error(const CacheSpec& spec) {
  const Status status = validate(spec);
  return status ? "" : status.error().message;
}

TEST(CacheSpec, UniformFillsTheShape) {
  const LayerSpec layer = parse_layer_spec("k4v2").value();
  const CacheSpec spec = CacheSpec::uniform(layer, 3, 2, 64);
  EXPECT_EQ(spec.layers, (std::vector<LayerSpec>{layer, layer, layer}));
  EXPECT_EQ(spec.kv_heads, 2);
  EXPECT_EQ(spec.head_dim, 64);
  EXPECT_EQ(validation_error(spec), "");
}

TEST(CacheSpec, ValidationSaysWhatIsWrong) {
  const CacheSpec good = *make_spec({"k4v2", "k8v4"}, 2, 64, 4, 64);
  CacheSpec spec = good;
  spec.layers.clear();
  EXPECT_EQ(validation_error(spec), "cache spec: expected at least one layer, found none");
  spec = good;
  spec.kv_heads = 0;
  EXPECT_EQ(validation_error(spec), "cache spec: kv_heads: expected 1 to 4096, found 0");
  spec = good;
  spec.sinks = -1;
  EXPECT_EQ(validation_error(spec), "cache spec: sinks: expected 0 or more, found -1");
  for (const int window : {-64, 1, 63, 65, 100}) {
    spec = good;
    spec.window = window;
    EXPECT_EQ(
        validation_error(spec),
        fmt::format("cache spec: window: expected a multiple of 64 tokens, found {}", window));
  }
  spec = good;
  spec.head_dim = 20;
  EXPECT_EQ(validation_error(spec),
            "cache spec: layer 0: head_dim: expected a multiple of 16 from 16 to 256, found 20");
  spec = good;
  spec.layers[1].value.group = 48;
  EXPECT_NE(validation_error(spec).find("cache spec: layer 1: "), std::string::npos);
  EXPECT_NE(validation_error(spec).find("found 48"), std::string::npos);
}

TEST(CacheSpec, OfAPlan) {
  Plan plan;
  plan.model = {.identity = "", .layers = 2, .kv_heads = 8, .head_dim = 128};
  plan.sinks = 0;
  plan.window = 128;
  plan.layers = {parse_layer_spec("k4v2").value(), parse_layer_spec("k8v1").value()};
  const CacheSpec spec = CacheSpec::of(plan);
  EXPECT_TRUE(validate(spec));
  EXPECT_EQ(spec.layers, plan.layers);
  EXPECT_EQ(spec.sinks, 0);
  EXPECT_EQ(spec.window, 128);
  EXPECT_DOUBLE_EQ(effective_bits(spec), (3.25 + 4.75) / 2);
}

TEST(CacheSpec, BoundaryDependsOnThePositionAlone) {
  EXPECT_EQ(packed_boundary(0, 4, 64), 4);
  EXPECT_EQ(packed_boundary(4 + 64 + 63, 4, 64), 4);
  EXPECT_EQ(packed_boundary(4 + 64 + 64, 4, 64), 4 + 64);
  EXPECT_EQ(packed_boundary(64, 0, 0), 64);
  EXPECT_EQ(packed_pages(0, 4, 64), 0);
  EXPECT_EQ(packed_pages(4 + 64 + 64, 4, 64), 0);
  EXPECT_EQ(packed_pages(4 + 64 + 64 + 1, 4, 64), 1);
}

TEST(CacheSpec, BytesOfKnownFormats) {
  // Pages of 7168 and 13312 bytes (docs/page_format.md), 8 kv heads.
  const auto spec = make_spec(
      {"k4:g64:channel:affine,v2:g64:token:affine", "k8:g64:channel:affine,v4:g64:token:affine"}, 8,
      128, 4, 64);
  const std::int64_t row = 2 * 8 * 128 * 2;  // key and value of one token and layer
  EXPECT_EQ(cache_bytes(*spec, 0), 0);
  EXPECT_EQ(cache_bytes(*spec, 1), 2 * row);
  EXPECT_EQ(cache_bytes(*spec, 132), 132 * 2 * row);
  EXPECT_EQ(cache_bytes(*spec, 133), 69 * 2 * row + 8 * (7168 + 13312));
  EXPECT_EQ(cache_bytes(*spec, 4 + 64 + 64 * 100 + 1), 69 * 2 * row + 100 * 8 * (7168 + 13312));
  EXPECT_EQ(cache_bytes_16bit(*spec, 1000), 1000 * 2 * row);
  EXPECT_DOUBLE_EQ(effective_bits(*spec), (3.5 + 6.5) / 2);
}

}  // namespace
}  // namespace kvq
