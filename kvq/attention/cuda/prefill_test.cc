// The prefill kernels against plain double precision.
#include "kvq/attention/cuda/prefill.h"

#include <gtest/gtest.h>

#include <cmath>
#include <numeric>

#include "kvq/attention/cuda/device_batch.h"
#include "kvq/attention/reference/reference_attention.h"
#include "kvq/attention/test_view.h"
#include "kvq/base/half.h"

namespace kvq::cuda {
namespace {

// The newest `chunk` of `length` tokens.
struct Chunk {
  std::int64_t length;
  std::int64_t chunk;
};

struct Case {
  std::string spec = "k4v2";
  int head_dim = 128;
  int kv_heads = 1;
  int heads = 4;  // query heads of a kv head
  std::vector<Chunk> chunks = {{64 * 6 + 27, 71}};
  int sinks = 4;
  int window = 64;
  bool exact_prefill = false;
  std::int64_t cut = 0;  // tokens that were behind the first sequence's and had been packed
  NumberType type = NumberType::kFloat32;
};

std::vector<std::uint16_t> to_16_bits(const std::vector<float>& numbers, NumberType type) {
  std::vector<std::uint16_t> result(numbers.size());
  for (std::size_t i = 0; i < numbers.size(); ++i) {
    result[i] =
        type == NumberType::kFloat16 ? to_half(numbers[i]).bits : to_bfloat16(numbers[i]).bits;
  }
  return result;
}
std::vector<float> from_16_bits(const std::vector<std::uint16_t>& numbers, NumberType type) {
  std::vector<float> result(numbers.size());
  for (std::size_t i = 0; i < numbers.size(); ++i) {
    result[i] =
        type == NumberType::kFloat16 ? to_float(Half{numbers[i]}) : to_float(BFloat16{numbers[i]});
  }
  return result;
}

class Launcher {
 public:
  explicit Launcher(const Case& test) : test_(test), starts_(1, 0) {
    const LayerSpec spec = parse_layer_spec(test.spec).value();
    std::vector<ChunkLength> lengths;
    for (const Chunk& chunk : test.chunks) {
      sequences_.push_back(
          std::make_unique<TestView>(TestViewShape{.spec = spec,
                                                   .kv_heads = test.kv_heads,
                                                   .head_dim = test.head_dim,
                                                   .sinks = test.sinks,
                                                   .window = test.window,
                                                   .length = chunk.length + test.cut,
                                                   .chunk = std::max<std::int64_t>(chunk.chunk, 1),
                                                   .seed = sequences_.size() + 1}));
      views_.push_back(test.cut == 0 ? sequences_.back()->view()
                                     : truncated(*sequences_.back(), chunk.length));
      lengths.push_back({static_cast<std::int32_t>(views_.back().length),
                         static_cast<std::int32_t>(views_.back().tail.first)});
      starts_.push_back(starts_.back() + static_cast<std::int32_t>(chunk.chunk));
    }
    shape_ = {.query_heads = test.heads * test.kv_heads,
              .kv_heads = test.kv_heads,
              .head_dim = test.head_dim,
              .scale = 1.0F / std::sqrt(static_cast<float>(test.head_dim))};
    query_ = random_normal(row() * starts_.back(), 99);
    if (test.type != NumberType::kFloat32) {
      query_ = from_16_bits(to_16_bits(query_, test.type), test.type);
    }
    device_ = std::make_unique<DeviceBatch>(views_, 5);
    device_starts_ = upload(starts_);
    device_lengths_ = upload(lengths);
    prefill_ = std::make_unique<Prefill>(
        Prefill::create(
            shape_, *views_[0].format,
            {.sinks = test.sinks, .window = test.window, .exact_prefill = test.exact_prefill})
            .value());
  }

  std::size_t row() const { return std::size_t(shape_.query_heads) * shape_.head_dim; }
  const Prefill& prefill() const { return *prefill_; }

  std::vector<float> launch() {
    const bool wide = test_.type == NumberType::kFloat32;
    const std::unique_ptr<DeviceBuffer> query =
        wide ? upload(query_) : upload(to_16_bits(query_, test_.type));
    const std::size_t bytes = query_.size() * (wide ? 4 : 2);
    const DeviceBuffer output(bytes);
    const Status status = prefill_->run(batch(query->get(), output.get()), nullptr);
    EXPECT_TRUE(status) << status.error().message;
    EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess) << cudaGetErrorString(cudaGetLastError());
    if (wide) {
      std::vector<float> result(query_.size());
      cudaMemcpy(result.data(), output.get(), bytes, cudaMemcpyDeviceToHost);
      return result;
    }
    std::vector<std::uint16_t> result(query_.size());
    cudaMemcpy(result.data(), output.get(), bytes, cudaMemcpyDeviceToHost);
    return from_16_bits(result, test_.type);
  }

  std::vector<double> expected() const {
    std::vector<double> result;
    for (std::size_t s = 0; s < views_.size(); ++s) {
      const AttentionItem item{&views_[s], query_.data() + starts_[s] * row(), nullptr,
                               starts_[s + 1] - starts_[s]};
      const std::vector<double> one = reference_attention(shape_, item, test_.exact_prefill);
      result.insert(result.end(), one.begin(), one.end());
    }
    return result;
  }

 private:
  // As after a truncation to fewer tokens than pages hold, and an append to `length`.
  LayerView truncated(const TestView& sequence, std::int64_t length) const {
    LayerView view = sequence.at(length, 1);
    view.pages = sequence.view().pages;
    const std::int64_t first =
        test_.sinks + kPageTokens * static_cast<std::int64_t>(view.pages.size());
    view.tail.key += (first - view.tail.first) * test_.head_dim;
    view.tail.value += (first - view.tail.first) * test_.head_dim;
    view.tail.first = first;
    view.tail.count = length - first;
    return view;
  }

  template <typename T>
  static std::unique_ptr<DeviceBuffer> upload(const std::vector<T>& data) {
    auto buffer = std::make_unique<DeviceBuffer>(data.size() * sizeof(T));
    cudaMemcpy(buffer->get(), data.data(), data.size() * sizeof(T), cudaMemcpyHostToDevice);
    return buffer;
  }

  PrefillBatch batch(const void* query, void* output) const {
    const DecodeBatch& memory = device_->batch();
    PrefillBatch batch;
    batch.sequences = memory.sequences;
    batch.tokens = starts_.back();
    batch.query = query;
    batch.output = output;
    batch.query_type = batch.output_type = test_.type;
    batch.query_starts = device_starts_->as<std::int32_t>();
    batch.lengths = device_lengths_->as<ChunkLength>();
    batch.pages = memory.pages;
    batch.page_table = memory.page_table;
    batch.page_stride = memory.page_stride;
    batch.head_stride = memory.head_stride;
    batch.table_stride = memory.table_stride;
    batch.sinks = memory.sinks;
    batch.tail = memory.tail;
    return batch;
  }

  Case test_;
  std::vector<std::int32_t> starts_;
  std::vector<std::unique_ptr<TestView>> sequences_;
  std::vector<LayerView> views_;
  AttentionShape shape_;
  std::vector<float> query_;
  std::unique_ptr<DeviceBatch> device_;
  std::unique_ptr<DeviceBuffer> device_starts_;
  std::unique_ptr<DeviceBuffer> device_lengths_;
  std::unique_ptr<Prefill> prefill_;
};

double relative_error(const float* result, const double* expected, std::size_t count) {
  double difference = 0;
  double norm = 0;
  for (std::size_t i = 0; i < count; ++i) {
    difference += (result[i] - expected[i]) * (result[i] - expected[i]);
    norm += expected[i] * expected[i];
  }
  return std::sqrt(difference / norm);
}

void expect_accurate(const Case& test) {
  SCOPED_TRACE(test.spec + " d" + std::to_string(test.head_dim) + " G" +
               std::to_string(test.heads) + " length " + std::to_string(test.chunks[0].length));
  Launcher run(test);
  const std::vector<double> expected = run.expected();
  const std::vector<float> result = run.launch();
  const double tolerance = test.type == NumberType::kBFloat16 ? 4e-3 : 2e-3;
  const double error = relative_error(result.data(), expected.data(), result.size());
  EXPECT_LT(error, tolerance) << run.prefill().kernel_name();
  // One wrong row of many is to be seen, too.
  double worst = 0;
  const std::size_t head_dim = static_cast<std::size_t>(test.head_dim);
  for (std::size_t i = 0; i < result.size(); i += head_dim) {
    worst = std::max(worst, relative_error(result.data() + i, expected.data() + i, head_dim));
  }
  EXPECT_LT(worst, 10 * tolerance) << run.prefill().kernel_name();
  std::printf("%-40s d%-3d G%-2d %-24s %.2e, worst row %.2e\n", test.spec.c_str(), test.head_dim,
              test.heads, run.prefill().kernel_name().c_str(), error, worst);
}

class CudaPrefill : public testing::Test {
 protected:
  void SetUp() override {
    int devices = 0;
    if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
      GTEST_SKIP() << "no CUDA device";
    }
  }
};

TEST_F(CudaPrefill, EveryPairOfWidths) {
  const std::vector<std::string> widths = {"1", "1.58", "2", "3", "4", "5", "6", "8", "16"};
  for (std::size_t i = 0; i < widths.size(); ++i) {
    for (const std::size_t distance : {0, 4}) {
      const std::string spec =
          fmt::format("k{}v{}", widths[i], widths[(i + distance) % widths.size()]);
      expect_accurate({.spec = spec, .head_dim = distance == 0 ? 128 : 64});
    }
    expect_accurate({.spec = fmt::format("k{0}v{0}", widths[i]),
                     .head_dim = 256,
                     .heads = 2,
                     .chunks = {{300, 20}}});
  }
}

TEST_F(CudaPrefill, AxesGroupsParameters) {
  int number = 0;
  for (const char* key_axis : {"token", "channel"}) {
    for (const char* value_axis : {"token", "channel"}) {
      for (const int group : {16, 32, 64, 128, 256}) {
        for (const char* parameters : {"symmetric", "affine"}) {
          const int head_dim = std::vector{64, 128, 80, 256, 96}[number % 5];
          const char* bits[] = {"4", "3", "1.58", "5", "8", "1", "6"};
          const char* rotation = number % 3 == 0 ? "none" : "hadamard";
          const auto tensor = [&](const char* axis, int at) {
            return fmt::format("{}:g{}:{}:{}:minmax:{}", bits[at % 7], group, axis, parameters,
                               rotation);
          };
          expect_accurate({.spec = fmt::format("k{},v{}", tensor(key_axis, number),
                                               tensor(value_axis, number + 3)),
                           .head_dim = head_dim,
                           .heads = 1 + number % 8,
                           .chunks = {{270 + 7 * number, 21 + number}}});
          ++number;
        }
      }
    }
  }
}

TEST_F(CudaPrefill, HeadsPerKvHead) {
  for (int heads = 1; heads <= 16; ++heads) {
    expect_accurate({.kv_heads = 1 + heads % 2, .heads = heads, .chunks = {{331, 67}}});
  }
}

TEST_F(CudaPrefill, ChunksOfAnyLengthAnywhere) {
  for (const std::int64_t chunk : {1, 2, 3, 5, 8, 31, 32, 33, 64, 127, 150}) {
    std::vector<Chunk> chunks;
    for (const std::int64_t before : {0, 1, 3, 4, 5, 63, 68, 131, 132, 133, 196, 259, 300}) {
      chunks.push_back({before + chunk, chunk});
    }
    expect_accurate({.head_dim = 64, .chunks = chunks});
    expect_accurate({.head_dim = 64, .chunks = chunks, .exact_prefill = true});
  }
  expect_accurate({.kv_heads = 2, .chunks = {{700, 700}}});
  expect_accurate({.chunks = {{64 * 30 + 7, 8}}});
}

TEST_F(CudaPrefill, SinksAndWindows) {
  for (const int sinks : {0, 1, 64, 100}) {
    for (const int window : {0, 64, 192}) {
      expect_accurate({.head_dim = 64,
                       .chunks = {{450, 130}, {sinks + window + 64, 10}, {90, 90}},
                       .sinks = sinks,
                       .window = window});
    }
  }
}

TEST_F(CudaPrefill, RaggedBatchWithEmptyChunks) {
  std::vector<Chunk> chunks;
  for (std::int64_t i = 0; i < 70; ++i) chunks.push_back({20 + 5 * i, i % 3 == 0 ? 0 : 1 + i % 17});
  expect_accurate({.head_dim = 64, .kv_heads = 2, .heads = 3, .chunks = chunks});
}

TEST_F(CudaPrefill, NumberTypes) {
  for (const NumberType type : {NumberType::kFloat16, NumberType::kBFloat16}) {
    for (const int head_dim : {64, 128, 256}) expect_accurate({.head_dim = head_dim, .type = type});
  }
}

TEST_F(CudaPrefill, ExactPrefill) {
  for (const int head_dim : {64, 80, 128, 256}) {
    expect_accurate({.head_dim = head_dim, .chunks = {{400, 300}}, .exact_prefill = true});
  }
}

TEST_F(CudaPrefill, RowsThatOnlyPagesHold) {
  for (const std::int64_t chunk : {1, 4, 6}) {
    expect_accurate({.chunks = {{330, chunk}}, .cut = 70});
    expect_accurate({.chunks = {{330, chunk}}, .exact_prefill = true, .cut = 70});
  }
}

TEST_F(CudaPrefill, RefusesWhatItCannotDo) {
  const PageFormat format = PageFormat::create(parse_layer_spec("k4v2").value(), 128).value();
  AttentionShape shape{.query_heads = 34, .kv_heads = 2, .head_dim = 128, .scale = 1};
  EXPECT_FALSE(Prefill::create(shape, format, {}));
  shape = {.query_heads = 8, .kv_heads = 2, .head_dim = 64, .scale = 1};
  EXPECT_FALSE(Prefill::create(shape, format, {}));
  shape.head_dim = 128;
  const Prefill prefill = Prefill::create(shape, format, {}).value();
  EXPECT_FALSE(prefill.run({.sequences = 1, .tokens = 1, .page_stride = 64}, nullptr));
  PrefillBatch batch{.sequences = 1, .tokens = 1};
  batch.tail.head_stride = 4;
  EXPECT_FALSE(prefill.run(batch, nullptr));
}

}  // namespace
}  // namespace kvq::cuda
