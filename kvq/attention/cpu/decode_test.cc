#include "kvq/attention/cpu/decode.h"

#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <string>
#include <vector>

#include "kvq/attention/reference/reference_attention.h"
#include "kvq/attention/test_view.h"

namespace kvq {
namespace {

struct Case {
  std::string spec;
  int group_heads;
  int head_dim;
  std::int64_t length;
};

// Relative L2 error of the decoder's output, all heads together.
double decode_error(const Case& test, Isa isa, Precision precision, int threads) {
  constexpr int kKvHeads = 2;
  TestViewShape view_shape;
  view_shape.spec = *parse_layer_spec(test.spec);
  view_shape.kv_heads = kKvHeads;
  view_shape.head_dim = test.head_dim;
  view_shape.length = test.length;
  const TestView view(view_shape);
  const AttentionShape shape{kKvHeads * test.group_heads, kKvHeads, test.head_dim,
                             1 / std::sqrt(static_cast<float>(test.head_dim))};
  const std::size_t size = static_cast<std::size_t>(shape.query_heads) * test.head_dim;
  const std::vector<float> query = random_normal(size, 7);
  std::vector<float> output(size, NAN);
  const AttentionItem item{&view.view(), query.data(), output.data(), 1};

  AttentionOptions options;
  options.isa = isa;
  options.precision = precision;
  ThreadPool pool(threads);
  Decoder decoder(shape, options);
  const AttentionItem* const items[] = {&item};
  decoder.run(items, pool);

  const std::vector<double> expected = reference_attention(shape, item, false);
  double error = 0;
  double norm = 0;
  for (std::size_t i = 0; i < size; ++i) {
    error += (output[i] - expected[i]) * (output[i] - expected[i]);
    norm += expected[i] * expected[i];
  }
  return std::sqrt(error / norm);
}

// One uint8 term of the weights is exact to 1/255 of the largest in the page: up to 8e-3 of the
// output where many tokens share it (relative to the error of 5-bit values, about 3e-2, nothing).
double allowed_error(const LayerSpec& spec, Precision precision) {
  if (spec.key.bits == Bits::k16 && spec.value.bits == Bits::k16) return 3e-6;
  if (precision == Precision::kFast && spec.key.bits != Bits::k16) return 4e-2;
  return spec.value.bits == Bits::k16 || spec.value.bits == Bits::k8 || spec.value.bits == Bits::k6
             ? 1e-3
             : 7e-3;
}

void check(const Case& test, Precision precision = Precision::kDefault) {
  const LayerSpec spec = *parse_layer_spec(test.spec);
  const PageFormat format = *PageFormat::create(spec, test.head_dim);
  for (Isa isa : runnable_isas()) {
    if (!decode_supports(format, test.group_heads, isa)) continue;
    EXPECT_LT(decode_error(test, isa, precision, 1), allowed_error(spec, precision))
        << name(isa) << ' ' << test.spec << " G " << test.group_heads << " head_dim "
        << test.head_dim << " length " << test.length;
  }
}

constexpr const char* kWidths[] = {"16", "8", "6", "5", "4", "3", "2", "1.58", "1"};

TEST(Decode, EveryPairOfWidths) {
  for (const char* key : kWidths) {
    for (const char* value : kWidths) check({fmt::format("k{}v{}", key, value), 4, 128, 300});
  }
}

TEST(Decode, EveryAxisGroupAndParameters) {
  int turn = 0;
  for (const char* axis : {"channel", "token"}) {
    for (int group : {16, 32, 64, 128, 256}) {
      for (const char* parameters : {"symmetric", "affine"}) {
        for (const char* width : kWidths) {
          if (std::string(width) == "16") continue;
          const int head_dim = std::array{64, 80, 96, 128, 256}[turn % 5];
          const int heads = std::array{1, 4, 3}[turn / 5 % 3];
          const std::string options = fmt::format(":{}:g{}:{}", axis, group, parameters);
          const char* partner = kWidths[1 + turn++ % 8];
          check({fmt::format("k{}{},v{}", width, options, partner), heads, head_dim, 330});
          check({fmt::format("k{},v{}{}", partner, width, options), heads, head_dim, 330});
        }
      }
    }
  }
}

TEST(Decode, EveryGroupOfHeads) {
  for (int heads = 1; heads <= 16; ++heads) {
    for (const char* spec : {"k4v2", "k8v8", "k16v16", "k3:channel:affine,v3:channel:affine"}) {
      check({spec, heads, 128, 300});
      check({spec, heads, 128, 300}, Precision::kFast);
    }
  }
}

// Sinks only, a growing tail, the first page, the second, a second unit, many.
TEST(Decode, EveryLength) {
  for (std::int64_t length :
       {1, 3, 4, 5, 20, 63, 64, 67, 68, 69, 100, 131, 132, 133, 196, 4096 + 64 + 70, 9000}) {
    for (const char* spec : {"k4v2", "k16v16"}) check({spec, 4, 64, length});
  }
}

TEST(Decode, UnrotatedFormats) { check({"k4:none,v4:none", 4, 128, 500}); }

TEST(Decode, DefaultFormatHasKernels) {
  const PageFormat format = *PageFormat::create(*parse_layer_spec("k4v2"), 128);
  for (Isa isa : runnable_isas()) {
    EXPECT_EQ(decode_supports(format, 4, isa), isa != Isa::kPortable) << name(isa);
  }
}

// Two items of different lengths and formats; one thread against three, bit by bit.
TEST(Decode, ThreadsDoNotChangeTheResult) {
  TestViewShape shape;
  shape.spec = *parse_layer_spec("k4v2");
  shape.kv_heads = 2;
  shape.head_dim = 128;
  shape.length = 9000;
  const TestView first(shape);
  shape.spec = *parse_layer_spec("k8v4");
  shape.length = 700;
  const TestView second(shape);
  const std::vector<float> query = random_normal(2 * 8 * 128, 3);
  for (Isa isa : runnable_isas()) {
    if (!decode_supports(first.format(), 4, isa)) continue;
    std::vector<std::vector<float>> outputs;
    for (int threads : {1, 3}) {
      std::vector<float> output(query.size(), NAN);
      const AttentionItem long_item{&first.view(), query.data(), output.data(), 1};
      const AttentionItem short_item{&second.view(), query.data() + 1024, output.data() + 1024, 1};
      const AttentionItem* const items[] = {&long_item, &short_item};
      AttentionOptions options;
      options.isa = isa;
      Decoder decoder({8, 2, 128, 0.088F}, options);
      ThreadPool pool(threads);
      decoder.run(items, pool);
      decoder.run(items, pool);  // memory is reused
      outputs.push_back(output);
    }
    EXPECT_EQ(outputs[0], outputs[1]) << name(isa);
  }
}

}  // namespace
}  // namespace kvq
