#include "kvq/attention/cpu/tile.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <memory>

#include "kvq/attention/test_view.h"
#include "kvq/codec/pack.h"

namespace kvq {
namespace {

// Every width x axis x group x parameters, as key and (with another group) as value.
std::vector<LayerSpec> specs() {
  std::vector<Bits> widths = packed_bits();
  widths.push_back(Bits::k16);
  const int groups[] = {16, 32, 64, 128, 256};
  std::vector<LayerSpec> result;
  for (std::size_t i = 0; i < widths.size(); ++i) {
    for (int k = 0; k < 20; ++k) {
      TensorSpec key{.bits = widths[i]};
      key.rotation = Rotation::kNone;
      key.axis = k % 2 == 0 ? Axis::kToken : Axis::kChannel;
      key.parameters = k / 2 % 2 == 0 ? Parameters::kSymmetric : Parameters::kAffine;
      key.group = groups[k / 4];
      TensorSpec value = key;
      value.bits = widths[(i + k) % widths.size()];
      value.group = groups[(k / 4 + i) % 5];
      result.push_back({key, value});
    }
  }
  return result;
}

TEST(Tile, ExpandsEveryFormat) {
  const auto scratch = std::make_unique<TileScratch>();
  for (const int head_dim : {64, 80, 96, 128, 256}) {
    std::vector<float> tile(std::size_t{256} * kBlockRows);
    std::vector<float> key(std::size_t{64} * head_dim);
    std::vector<float> value(std::size_t{64} * head_dim);
    for (const LayerSpec& spec : specs()) {
      TestView test({.spec = spec, .head_dim = head_dim, .sinks = 0, .window = 0, .length = 65});
      const std::byte* page = test.view().pages[0].data;
      unpack_page(test.format(), page, key.data(), value.data());
      const TilePlan key_plan(test.format().key);
      const TilePlan value_plan(test.format().value);
      for (const Isa isa : runnable_isas()) {
        const TileKernels& kernels = tile_kernels(isa);
        kernels.expand(key_plan, page, 0, *scratch, tile.data());
        for (int token = 0; token < 64; ++token) {
          for (int channel = 0; channel < head_dim; ++channel) {
            const float expected = key[token * head_dim + channel];
            ASSERT_NEAR(tile[channel * 64 + token], expected, 2e-6 * (1 + std::abs(expected)))
                << name(isa) << " key " << to_string(spec) << " head_dim " << head_dim << " token "
                << token << " channel " << channel;
          }
        }
        for (int channel = 0; channel < head_dim; ++channel) {
          if (channel % 64 == 0) {
            kernels.expand(value_plan, page, channel / 64, *scratch, tile.data());
          }
          for (int token = 0; token < 64; ++token) {
            const float expected = value[token * head_dim + channel];
            ASSERT_NEAR(tile[token * 64 + channel % 64], expected, 2e-6 * (1 + std::abs(expected)))
                << name(isa) << " value " << to_string(spec) << " head_dim " << head_dim
                << " token " << token << " channel " << channel;
          }
        }
      }
    }
  }
}

TEST(Tile, ExactRows) {
  const int head_dim = 80;
  std::vector<Half> rows(std::size_t{64} * head_dim);
  const std::vector<float> numbers = random_normal(rows.size(), 3);
  to_half(numbers.data(), rows.data(), rows.size());
  for (const Isa isa : runnable_isas()) {
    for (const int count : {1, 4, 15, 16, 17, 63, 64}) {
      const std::vector<Half> exactly(rows.begin(), rows.begin() + count * head_dim);
      std::vector<float> key(std::size_t{256} * 64, 9.0F);
      std::vector<float> value(std::size_t{256} * 64, 9.0F);
      tile_kernels(isa).exact_key(exactly.data(), head_dim, count, key.data());
      tile_kernels(isa).exact_value(exactly.data(), head_dim, count, value.data());
      for (int token = 0; token < (count + 15) / 16 * 16; ++token) {
        for (int c = 0; c < head_dim; ++c) {
          const float expected = token < count ? to_float(rows[token * head_dim + c]) : 0.0F;
          ASSERT_EQ(key[c * 64 + token], expected) << name(isa) << " " << token << " " << c;
          ASSERT_EQ(value[(c / 64 * 64 + token) * 64 + c % 64], expected)
              << name(isa) << " " << token << " " << c;
        }
      }
    }
  }
}

TEST(Tile, MultipliesAnyNumberOfRows) {
  const int depth = 80;
  const std::vector<float> a = random_normal(std::size_t{20} * depth, 1);
  const std::vector<float> b = random_normal(std::size_t{64} * depth, 2);
  const std::vector<float> before = random_normal(std::size_t{20} * 128, 3);
  const std::vector<float> rescale = random_normal(20, 4);
  for (const Isa isa : runnable_isas()) {
    for (int rows = 1; rows <= 20; ++rows) {
      for (const int columns : {16, 32, 48, 64}) {
        for (const bool add : {false, true}) {
          std::vector<float> c = before;
          tile_kernels(isa).multiply(a.data(), depth, b.data(), depth, columns, c.data(), 128, rows,
                                     add ? rescale.data() : nullptr);
          for (int i = 0; i < 20 * 128; ++i) {
            const int row = i / 128;
            const int column = i % 128;
            if (row >= rows || column >= columns) {
              ASSERT_EQ(c[i], before[i]) << name(isa) << " touched " << row << ", " << column;
              continue;
            }
            double expected = add ? double{rescale[row]} * before[i] : 0.0;
            for (int k = 0; k < depth; ++k) {
              expected += double{a[row * depth + k]} * b[k * 64 + column];
            }
            ASSERT_NEAR(c[i], expected, 3e-5)
                << name(isa) << " rows " << rows << " at " << row << ", " << column;
          }
        }
      }
    }
  }
}

TEST(Tile, SoftmaxRunsOverStrips) {
  constexpr int kRows = 19;
  constexpr int kStrips = 3;
  const std::vector<float> scores = random_normal(std::size_t{kStrips} * kRows * 64, 5);
  for (const Isa isa : runnable_isas()) {
    std::vector<float> maximum(32, -std::numeric_limits<float>::infinity());
    std::vector<float> rescale(32);
    std::vector<float> sum(32);
    std::vector<double> expected_sum(kRows);
    std::vector<double> top(kRows, -1e30);
    for (int strip = 0; strip < kStrips; ++strip) {
      std::vector<float> weights(scores.begin() + strip * kRows * 64,
                                 scores.begin() + (strip + 1) * kRows * 64);
      for (float& w : weights) w *= 40;  // a spread beyond binary32's exponents
      const std::vector<float> x = weights;
      std::vector<int> visible(kRows);
      for (int r = 0; r < kRows; ++r) visible[r] = 1 + (7 * r + 13 * strip) % 48;
      const std::vector<double> top_before = top;
      tile_kernels(isa).softmax(weights.data(), visible.data(), 48, kRows, maximum.data(),
                                sum.data(), rescale.data());
      for (int r = 0; r < kRows; ++r) {
        for (int c = 0; c < visible[r]; ++c) top[r] = std::max<double>(top[r], x[r * 64 + c]);
        const double factor = std::exp2(double{static_cast<float>(top_before[r] - top[r])});
        expected_sum[r] *= factor;
        ASSERT_EQ(maximum[r], top[r]);
        ASSERT_NEAR(rescale[r], factor, 1e-6 * factor + 1e-30) << name(isa) << " row " << r;
        for (int c = 0; c < 48; ++c) {
          const auto distance = static_cast<float>(x[r * 64 + c] - top[r]);
          const double weight = c < visible[r] ? std::exp2(double{distance}) : 0.0;
          expected_sum[r] += weight;
          ASSERT_NEAR(weights[r * 64 + c], weight, 1e-6 * weight + 2e-38)
              << name(isa) << " row " << r << " column " << c;
        }
        ASSERT_NEAR(sum[r], expected_sum[r], 1e-6 * expected_sum[r]) << name(isa) << " row " << r;
      }
    }
  }
}

}  // namespace
}  // namespace kvq
