// Every kernel against plain double precision.
#include "kvq/attention/cuda/decode.h"

#include <gtest/gtest.h>

#include <cmath>

#include "kvq/attention/cuda/device_batch.h"
#include "kvq/attention/reference/reference_attention.h"
#include "kvq/attention/test_view.h"

namespace kvq::cuda {
namespace {

struct Case {
  std::string spec;
  int head_dim = 128;
  int kv_heads = 2;
  int heads = 4;  // query heads of a kv head
  std::vector<std::int64_t> lengths = {64 * 37 + 91};
  int sinks = 4;
  int window = 64;
  bool deterministic = false;
};

class Launcher {
 public:
  explicit Launcher(const Case& test) : test_(test) {
    const LayerSpec spec = parse_layer_spec(test.spec).value();
    for (std::size_t s = 0; s < test.lengths.size(); ++s) {
      sequences_.push_back(std::make_unique<TestView>(TestViewShape{.spec = spec,
                                                                    .kv_heads = test.kv_heads,
                                                                    .head_dim = test.head_dim,
                                                                    .sinks = test.sinks,
                                                                    .window = test.window,
                                                                    .length = test.lengths[s],
                                                                    .seed = s + 1}));
      views_.push_back(sequences_.back()->view());
    }
    shape_ = {.query_heads = test.heads * test.kv_heads,
              .kv_heads = test.kv_heads,
              .head_dim = test.head_dim,
              .scale = 1.0F / std::sqrt(static_cast<float>(test.head_dim))};
    query_ = random_normal(row() * views_.size(), 99);
    device_ = std::make_unique<DeviceBatch>(views_, 5);
    decode_ = std::make_unique<Decode>(
        Decode::create(shape_, *views_[0].format,
                       {.max_sequences = static_cast<int>(views_.size()) + 1,
                        .deterministic = test.deterministic})
            .value());
    workspace_ = std::make_unique<DeviceBuffer>(decode_->workspace_bytes());
    EXPECT_TRUE(decode_->initialize(workspace_->get(), nullptr));
  }

  std::size_t row() const { return std::size_t(shape_.query_heads) * shape_.head_dim; }
  const Decode& decode() const { return *decode_; }
  DecodeBatch batch() const { return device_->batch(); }
  Status run(const DecodeBatch& batch) const {
    return decode_->run(batch, workspace_->get(), nullptr);
  }

  std::vector<float> launch() {
    const std::size_t bytes = query_.size() * sizeof(float);
    const DeviceBuffer query(bytes);
    const DeviceBuffer output(bytes);
    cudaMemcpy(query.get(), query_.data(), bytes, cudaMemcpyHostToDevice);
    DecodeBatch batch = device_->batch();
    batch.query = query.get();
    batch.output = output.get();
    batch.pages_settled = launches_++ % 2 == 0;
    const Status status = decode_->run(batch, workspace_->get(), nullptr);
    EXPECT_TRUE(status) << status.error().message;
    EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess) << cudaGetErrorString(cudaGetLastError());
    std::vector<float> result(query_.size());
    cudaMemcpy(result.data(), output.get(), bytes, cudaMemcpyDeviceToHost);
    return result;
  }

  std::vector<double> expected() const {
    std::vector<double> result;
    for (std::size_t s = 0; s < views_.size(); ++s) {
      const AttentionItem item{&views_[s], query_.data() + s * row(), nullptr, 1};
      const std::vector<double> one = reference_attention(shape_, item, false);
      result.insert(result.end(), one.begin(), one.end());
    }
    return result;
  }

 private:
  Case test_;
  std::vector<std::unique_ptr<TestView>> sequences_;
  std::vector<LayerView> views_;
  AttentionShape shape_;
  std::vector<float> query_;
  std::unique_ptr<DeviceBatch> device_;
  std::unique_ptr<Decode> decode_;
  std::unique_ptr<DeviceBuffer> workspace_;
  int launches_ = 0;
};

double relative_error(const std::vector<float>& result, const std::vector<double>& expected) {
  double difference = 0;
  double norm = 0;
  for (std::size_t i = 0; i < expected.size(); ++i) {
    difference += (result[i] - expected[i]) * (result[i] - expected[i]);
    norm += expected[i] * expected[i];
  }
  return std::sqrt(difference / norm);
}

constexpr double kTolerance = 2e-3;

class CudaDecode : public testing::Test {
 protected:
  void SetUp() override {
    int devices = 0;
    const cudaError_t error = cudaGetDeviceCount(&devices);
    if (error != cudaSuccess || devices == 0) {
      GTEST_SKIP() << "needs a CUDA device: " << cudaGetErrorString(error);
    }
  }
};

void expect_accurate(const Case& test) {
  SCOPED_TRACE(test.spec + " d" + std::to_string(test.head_dim) + " G" +
               std::to_string(test.heads));
  Launcher run(test);
  const std::vector<double> expected = run.expected();
  for (int launch = 0; launch < 2; ++launch) {  // the second on the counters that the first left
    const double error = relative_error(run.launch(), expected);
    EXPECT_LT(error, kTolerance) << run.decode().kernel_name();
    if (launch == 0) {
      std::printf("%-40s d%-3d G%-2d %-22s %.2e\n", test.spec.c_str(), test.head_dim, test.heads,
                  run.decode().kernel_name().c_str(), error);
    }
  }
}

// Little of everything, for tools that slow a kernel down a hundredfold.
TEST_F(CudaDecode, Little) {
  expect_accurate({.spec = "k4v2", .head_dim = 64, .kv_heads = 1, .lengths = {1, 400, 132}});
  expect_accurate({.spec = "k4v4", .heads = 12, .lengths = {700}});
  expect_accurate({.spec = "k1.58v5", .head_dim = 64, .heads = 1, .lengths = {500}});
  expect_accurate({.spec = "k3:g32:channel:affine:minmax:none,v6:channel:affine",
                   .head_dim = 80,
                   .heads = 3,
                   .lengths = {500}});
  expect_accurate({.spec = "k4:affine,v2:g32", .kv_heads = 1, .lengths = {500}});
  expect_accurate({.spec = "k2:g256:channel,v8:g128:channel:affine", .lengths = {500}});
}

TEST_F(CudaDecode, FixedPairs) {
  for (const char* spec :
       {"k8v8", "k8v4", "k4v4", "k4v2", "k3v3", "k3v2", "k2v2", "k1.58v1.58", "k1v1"}) {
    for (const int head_dim : {64, 128, 256}) {
      expect_accurate({.spec = spec, .head_dim = head_dim});
    }
    expect_accurate({.spec = spec, .heads = 16, .lengths = {900}});
  }
}

TEST_F(CudaDecode, EveryPairOfWidths) {
  const std::vector<std::string> widths = {"1", "1.58", "2", "3", "4", "5", "6", "8", "16"};
  for (std::size_t i = 0; i < widths.size(); ++i) {
    for (const std::size_t distance : {0, 1, 4}) {
      const std::string spec = "k" + widths[i] + "v" + widths[(i + distance) % widths.size()];
      expect_accurate({.spec = spec, .lengths = {700}});
    }
  }
}

TEST_F(CudaDecode, AxesGroupsParameters) {
  int number = 0;
  const char* bits[] = {"4", "3", "1.58", "5", "8", "1", "6", "2"};
  const auto tensor = [&](const char* axis, int group, const char* parameters, int at) {
    const char* rotation = number % 3 == 0 ? "none" : "hadamard";
    return fmt::format("{}:g{}:{}:{}:minmax:{}", bits[at % 8], group, axis, parameters, rotation);
  };
  for (const int head_dim : {64, 80, 96, 128, 256}) {
    for (const char* key_axis : {"token", "channel"}) {
      for (const char* value_axis : {"token", "channel"}) {
        for (const int group : {16, 32, 64, 128, 256}) {
          for (const char* parameters : {"symmetric", "affine"}) {
            expect_accurate(
                {.spec = fmt::format("k{},v{}", tensor(key_axis, group, parameters, number),
                                     tensor(value_axis, group, parameters, number + 3)),
                 .head_dim = head_dim,
                 .heads = 1 + number % 11,
                 .lengths = {640 + 7 * (number % 40)}});
            ++number;
          }
        }
      }
    }
  }
}

// A group for keys, another for values, 16 bits beside packed ones.
TEST_F(CudaDecode, FormatsOfKeysAndValues) {
  for (const char* spec :
       {"k2:g32:channel:affine:none,v2:g32:affine:none", "k16,v4:g16:affine",
        "k4:g128:channel:affine,v16", "k8:g16,v1:g128:channel", "k4:affine,v2"}) {
    for (const int head_dim : {64, 128, 256}) {
      expect_accurate({.spec = spec, .head_dim = head_dim, .lengths = {2000, 70, 901}});
    }
  }
}

TEST_F(CudaDecode, HeadsPerKvHead) {
  for (int heads = 1; heads <= 16; ++heads) {
    expect_accurate({.spec = "k4v2", .heads = heads, .lengths = {517}});
    expect_accurate({.spec = "k5v3", .kv_heads = 1, .heads = heads, .lengths = {517}});
  }
  expect_accurate({.spec = "k4v4", .head_dim = 256, .heads = 12, .lengths = {517}});
}

TEST_F(CudaDecode, Lengths) {
  std::vector<std::int64_t> lengths;
  for (std::int64_t length = 1; length < 420; length += 13) lengths.push_back(length);
  expect_accurate({.spec = "k4v2", .head_dim = 64, .lengths = lengths});
  expect_accurate({.spec = "k4v2", .kv_heads = 1, .lengths = {1, 3, 4, 5, 20, 131, 132, 133, 196}});
  expect_accurate({.spec = "k4v2", .kv_heads = 1, .lengths = {64 * 40}, .sinks = 0, .window = 0});
  expect_accurate({.spec = "k4v2", .kv_heads = 8, .lengths = {1, 9000, 64, 1333, 257}});
  expect_accurate({.spec = "k4v2", .kv_heads = 1, .lengths = {20000}, .window = 1024});
}

TEST_F(CudaDecode, MoreItemsThanWarps) {
  std::vector<std::int64_t> lengths;
  for (int i = 0; i < 70; ++i) lengths.push_back(70 + (i * 37) % 400);
  expect_accurate({.spec = "k4v2", .head_dim = 64, .kv_heads = 32, .heads = 1, .lengths = lengths});
}

// Long items that lie in one block of warps, so that nobody else counts their partial results.
TEST_F(CudaDecode, ItemsOfOneBlock) {
  expect_accurate({.spec = "k4v2",
                   .head_dim = 64,
                   .kv_heads = 8,
                   .heads = 1,
                   .lengths = std::vector<std::int64_t>(32, 64 * 20),
                   .sinks = 0,
                   .window = 0});
}

TEST_F(CudaDecode, DeterministicRunsAreBitEqual) {
  Launcher run({.spec = "k4v2", .kv_heads = 8, .lengths = {9000, 3000, 70}, .deterministic = true});
  const std::vector<float> first = run.launch();
  EXPECT_LT(relative_error(first, run.expected()), kTolerance);
  for (int i = 0; i < 20; ++i) ASSERT_EQ(run.launch(), first);
}

TEST_F(CudaDecode, RowsAtMultiplesOfSixteenBytes) {
  const Launcher run({.spec = "k4v2"});
  DecodeBatch batch = run.batch();
  batch.tail.head_stride += 4;
  const Status strides = run.run(batch);
  ASSERT_FALSE(strides);
  EXPECT_NE(strides.error().message.find("attention: tail: expected rows at multiples of 16 bytes"),
            std::string::npos)
      << strides.error().message;
  batch = run.batch();
  batch.sinks.value += 4;
  const Status start = run.run(batch);
  ASSERT_FALSE(start);
  EXPECT_NE(start.error().message.find("attention: sinks: expected"), std::string::npos);
}

}  // namespace
}  // namespace kvq::cuda
