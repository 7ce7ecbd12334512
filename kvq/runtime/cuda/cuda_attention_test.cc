// Caches on a CUDA device against caches in host memory: the same rows, chunks, forks and cuts, and
// the same queries. Skipped where there is no device.
#include "kvq/runtime/cuda/cuda_attention.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>

#include "kvq/runtime/cpu/cpu_attention.h"
#include "kvq/runtime/cuda/cuda_ops.h"

namespace kvq::cuda {
namespace {

// Mostly the host's: its kernels round weights to 8 bits where codes are packed.
constexpr double kTolerance = 1e-2;
constexpr int kMostRows = 300;

struct Case {
  std::string spec;
  int layers = 2;
  int query_heads = 4;
  int kv_heads = 2;
  int head_dim = 64;
  int sinks = 4;
  int window = 64;
  bool exact_prefill = false;
};

// A sequence in both kinds of memory.
struct Twin {
  Sequence host;
  Sequence device;
};

class CudaAttentionTest : public testing::Test {
 protected:
  void SetUp() override {
    auto opened = Device::open();
    if (!opened) GTEST_SKIP() << opened.error().message;
    device_ = *opened;
    ops_ = create_cuda_ops(device_, InputTerms::kFloat32).value();
  }

  void start(const Case& test) {
    test_ = test;
    const AttentionShape shape{test.query_heads, test.kv_heads, test.head_dim,
                               1 / std::sqrt(static_cast<float>(test.head_dim))};
    host_ = create_cpu_attention(shape, {.isa = host_isa(), .exact_prefill = test.exact_prefill},
                                 threads_)
                .value();
    cuda_ = create_cuda_attention(device_, shape,
                                  {.max_rows = kMostRows, .exact_prefill = test.exact_prefill})
                .value();
    CacheSpec spec = CacheSpec::uniform(parse_layer_spec(test.spec).value(), test.layers,
                                        test.kv_heads, test.head_dim);
    spec.sinks = test.sinks;
    spec.window = test.window;
    spec_ = std::make_shared<const CacheSpec>(spec);
  }

  Twin twin() {
    return {host_->new_sequence(spec_, pool_).value(), cuda_->new_sequence(spec_, pool_).value()};
  }

  std::vector<float> random_numbers(std::size_t count) {
    std::vector<float> numbers(count);
    for (float& number : numbers) number = normal_(random_);
    return numbers;
  }

  // One chunk for every twin; the outputs of all layers must agree.
  void append(std::span<Twin* const> twins, std::span<const int> tokens) {
    int rows = 0;
    const std::vector<int> ids(kMostRows);
    std::vector<PassItem> items[2];
    for (std::size_t i = 0; i < twins.size(); ++i) {
      rows += tokens[i];
      for (const bool device : {false, true}) {
        Sequence& sequence = device ? twins[i]->device : twins[i]->host;
        items[device ? 1 : 0].push_back(
            {&sequence, {ids.data(), static_cast<std::size_t>(tokens[i])}, 1});
        const Status status = sequence.begin_chunk(tokens[i]);
        ASSERT_TRUE(status) << status.error().message;
      }
    }
    ASSERT_TRUE(host_->begin(items[0]));
    const Status status = cuda_->begin(items[1]);
    ASSERT_TRUE(status) << status.error().message;
    for (int layer = 0; layer < test_.layers; ++layer) attend(layer, rows, twins.size());
    ASSERT_TRUE(ops_->finish());
    const Status finished = cuda_->finish();
    ASSERT_TRUE(finished) << finished.error().message;
    for (const Twin* twin : twins) {
      ASSERT_EQ(twin->device.length(), twin->host.length());
      ASSERT_EQ(twin->device.bytes().pages, twin->host.bytes().pages);
      ASSERT_EQ(twin->device.bytes().exact, twin->host.bytes().exact);
    }
  }
  void append(Twin& one, int tokens) {
    Twin* const twins[] = {&one};
    append(twins, {&tokens, 1});
  }

  void attend(int layer, int rows, std::size_t items) {
    const std::size_t kv_count = std::size_t(rows) * test_.kv_heads * test_.head_dim;
    const std::size_t query_count = std::size_t(rows) * test_.query_heads * test_.head_dim;
    const std::vector<float> key = random_numbers(kv_count);
    const std::vector<float> value = random_numbers(kv_count);
    const std::vector<float> query = random_numbers(query_count);
    ASSERT_TRUE(host_->append(layer, key.data(), value.data()));
    const DeviceFloats device_key = on_device(key);
    const DeviceFloats device_value = on_device(value);
    ASSERT_TRUE(cuda_->append(layer, device_key.get(), device_value.get()));
    const bool wanted = layer + 1 == test_.layers;
    const std::size_t count = wanted ? items * test_.query_heads * test_.head_dim : query_count;
    std::vector<float> expected(count);
    ASSERT_TRUE(host_->attend(layer, wanted, query.data(), expected.data()));
    const DeviceFloats output =
        on_device(std::vector<float>(count, std::numeric_limits<float>::quiet_NaN()));
    const Status status = cuda_->attend(layer, wanted, on_device(query).get(), output.get());
    ASSERT_TRUE(status) << status.error().message;
    const float* found = ops_->to_host(output.get(), count);
    double error = 0;
    double norm = 0;
    for (std::size_t i = 0; i < count; ++i) {
      error += (found[i] - expected[i]) * (found[i] - expected[i]);
      norm += expected[i] * expected[i];
    }
    ASSERT_LT(std::sqrt(error / norm), kTolerance) << "layer " << layer << ", " << rows << " rows";
  }

  DeviceFloats on_device(const std::vector<float>& numbers) {
    DeviceFloats memory = ops_->allocate(numbers.size()).value();
    ops_->from_host(numbers.data(), numbers.size(), memory.get());
    return memory;
  }

  Case test_;
  std::shared_ptr<Device> device_;
  std::unique_ptr<Ops> ops_;
  ThreadPool threads_{2};
  std::unique_ptr<CachedAttention> host_;
  std::unique_ptr<CachedAttention> cuda_;
  std::shared_ptr<const CacheSpec> spec_;
  std::shared_ptr<PagePool> pool_ = PagePool::create(0);
  std::mt19937 random_{1};
  std::normal_distribution<float> normal_;
};

TEST_F(CudaAttentionTest, ChunksOfAllLengths) {
  for (const Case& test :
       {Case{.spec = "k4v2"}, Case{.spec = "k16v16"}, Case{.spec = "k8v4", .sinks = 0},
        Case{.spec = "k4v4", .head_dim = 128, .sinks = 70},
        Case{.spec = "k3:channel:affine,v5:channel:affine", .window = 0},
        Case{.spec = "k2v2", .query_heads = 16, .window = 128},
        Case{.spec = "k4v2", .exact_prefill = true}}) {
    SCOPED_TRACE(test.spec);
    start(test);
    Twin one = twin();
    for (const int tokens : {1, 2, 1, 60, 64, 200, 1, 1, 63, 300, 7, 1}) append(one, tokens);
    for (int step = 0; step < 70; ++step) append(one, 1);
  }
}

class CudaAttentionBatchTest : public CudaAttentionTest,
                               public testing::WithParamInterface<bool> {};

INSTANTIATE_TEST_SUITE_P(Prefill, CudaAttentionBatchTest, testing::Bool(),
                         [](const auto& test) { return test.param ? "exact" : "packed"; });

TEST_P(CudaAttentionBatchTest, BatchesOfDifferentLengths) {
  start({.spec = "k4v2", .exact_prefill = GetParam()});
  Twin twins[] = {twin(), twin(), twin()};
  Twin* const all[] = {&twins[0], &twins[1], &twins[2]};
  append(all, std::vector{250, 3, 40});
  append(all, std::vector{1, 200, 90});
  for (int step = 0; step < 66; ++step) append(all, std::vector{1, 1, 1});
  append(all, std::vector{64, 1, 5});
}

TEST_F(CudaAttentionTest, ForksAndCuts) {
  start({.spec = "k4v2"});
  Twin one = twin();
  append(one, 290);
  append(one, 7);
  Twin two{one.host.fork().value(), one.device.fork().value()};
  append(one, 30);
  append(two, 1);
  append(one, 1);
  append(two, 100);
  for (Sequence* sequence : {&one.host, &one.device}) ASSERT_TRUE(sequence->truncate(300));
  append(one, 5);
  for (Sequence* sequence : {&two.host, &two.device}) ASSERT_TRUE(sequence->truncate(101));
  append(two, 3);
  append(one, 200);
  for (Sequence* sequence : {&one.host, &one.device}) ASSERT_TRUE(sequence->truncate(2));
  append(one, 120);
  for (Sequence* sequence : {&one.host, &one.device}) sequence->reset();
  append(one, 140);
}

TEST_F(CudaAttentionTest, FailedChunksLeaveTheSequenceAsItWas) {
  start({.spec = "k4v2"});
  Twin one = twin();
  append(one, 200);
  const int ids[100] = {};
  const PassItem item{&one.device, ids, 1};
  ASSERT_TRUE(one.device.begin_chunk(100));
  ASSERT_TRUE(cuda_->begin({&item, 1}));
  std::vector<float> key = random_numbers(std::size_t{100} * test_.kv_heads * test_.head_dim);
  const DeviceFloats value = on_device(key);
  key[(40 * test_.kv_heads + 1) * test_.head_dim + 5] = -1e6F;
  key[(50 * test_.kv_heads) * test_.head_dim + 9] = std::numeric_limits<float>::quiet_NaN();
  for (int layer = 0; layer < test_.layers; ++layer) {
    ASSERT_TRUE(cuda_->append(layer, on_device(key).get(), value.get()));
  }
  ASSERT_TRUE(ops_->finish());
  const Status status = cuda_->finish();
  ASSERT_FALSE(status);
  EXPECT_EQ(
      status.error().message,
      "layer 0, kv head 1, token 240: key channel 5 is below -65504, expected a finite number "
      "within +-65504");
  one.device.abort_chunk();
  append(one, 100);
}

TEST_F(CudaAttentionTest, BudgetsAndForeignSequencesAreErrors) {
  start({.spec = "k4v2"});
  pool_ = PagePool::create(1 << 18);
  Twin one = twin();
  const Status status = one.device.begin_chunk(300);
  ASSERT_FALSE(status);
  EXPECT_TRUE(status.error().message.find("the cache is full: budget") != std::string::npos)
      << status.error().message;
  EXPECT_EQ(pool_->used_bytes(), 0);
  const int id = 0;
  const PassItem item{&one.host, {&id, 1}, 1};
  EXPECT_FALSE(cuda_->begin({&item, 1}));
}

}  // namespace
}  // namespace kvq::cuda
