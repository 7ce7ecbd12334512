// Pages packed on the device against pages packed on the CPU, byte for byte.
#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <cstring>
#include <optional>

#include "kvq/base/cuda/memory.h"
#include "kvq/codec/cuda/packer.h"
#include "kvq/codec/test_pages.h"

namespace kvq::cuda {
namespace {

constexpr std::byte kUntouched{0xaa};

void check(cudaError_t error) { ASSERT_EQ(error, cudaSuccess) << cudaGetErrorString(error); }

// Numbers in the memory of the device.
template <typename T>
class OnDevice {
 public:
  explicit OnDevice(const std::vector<T>& values)
      : memory_(DeviceArray::create(values.size() * sizeof(T)).value()), count_(values.size()) {
    set(values);
  }

  T* get() const { return memory_.as<T>(); }
  void set(const std::vector<T>& values) {
    check(cudaMemcpy(get(), values.data(), count_ * sizeof(T), cudaMemcpyHostToDevice));
  }
  std::vector<T> values() const {
    std::vector<T> copy(count_);
    check(cudaMemcpy(copy.data(), get(), count_ * sizeof(T), cudaMemcpyDeviceToHost));
    return copy;
  }

 private:
  DeviceArray memory_;
  std::size_t count_;
};

// Zeros of both signs: some rows and channels have one sign only.
std::vector<Half> signed_zeros(int head_dim, unsigned seed) {
  std::mt19937 random(seed);
  std::vector<Half> rows;
  for (int token = 0; token < kPageTokens; ++token) {
    for (int channel = 0; channel < head_dim; ++channel) {
      const bool negative = token % 3 == 0 || channel % 5 == 2 || random() % 2 == 0;
      rows.push_back({static_cast<std::uint16_t>(negative ? 0x8000 : 0)});
    }
  }
  return rows;
}

// Numbers that differ a little from group to group, so that fits end in every way.
std::vector<Half> varied(int head_dim, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<Half> rows;
  for (int token = 0; token < kPageTokens; ++token) {
    for (int channel = 0; channel < head_dim; ++channel) {
      const float width = std::exp2(static_cast<float>((token * 7 + channel / 16) % 40 - 26));
      rows.push_back(to_half(width * (normal(random) + static_cast<float>(token % 3))));
    }
  }
  return rows;
}

// [kinds of data][64 tokens, head_dim]
std::vector<std::vector<Half>> every_kind_of_rows(int head_dim, unsigned seed) {
  std::vector<std::vector<Half>> kinds;
  for (const Data data : kEveryData) kinds.push_back(make_rows(data, head_dim, seed));
  kinds.push_back(signed_zeros(head_dim, seed));
  kinds.push_back(varied(head_dim, seed));
  return kinds;
}

std::vector<std::uint16_t> joined(const std::vector<std::vector<Half>>& parts) {
  std::vector<std::uint16_t> bits;
  for (const auto& part : parts) {
    for (const Half number : part) bits.push_back(number.bits);
  }
  return bits;
}

// Which part of the page a byte belongs to.
std::string place(const PageFormat& format, std::size_t byte) {
  const TensorFormat& tensor = byte < format.value.planes_offset ? format.key : format.value;
  const char* section = byte < tensor.scales_offset                  ? "planes"
                        : byte < tensor.centers_offset               ? "scales"
                        : byte < tensor.planes_offset + tensor.bytes ? "centers"
                                                                     : "padding";
  return fmt::format("{} {}, byte {} of the page", tensor.is_key ? "K" : "V", section, byte);
}

void expect_equal(const PageFormat& format, const std::byte* found,
                  const std::vector<std::byte>& expected) {
  for (std::size_t i = 0; i < expected.size(); ++i) {
    ASSERT_EQ(found[i], expected[i]) << place(format, i);
  }
}

std::vector<std::string> tensor_specs() {
  std::vector<std::string> specs;
  for (const Bits bits : packed_bits()) {
    for (const char* axis : {"token", "channel"}) {
      for (const int group : {16, 32, 64, 128, 256}) {
        for (const char* fit :
             {"symmetric:minmax", "symmetric:mse", "affine:minmax", "affine:mse", "affine:hqq"}) {
          for (const char* rotation : {"none", "hadamard"}) {
            specs.push_back(fmt::format("{}:{}:g{}:{}:{}", name(bits), axis, group, fit, rotation));
          }
        }
      }
    }
  }
  return specs;
}

class CudaPack : public testing::Test {
 protected:
  void SetUp() override {
    int devices = 0;
    if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
      GTEST_SKIP() << "no CUDA device on this machine";
    }
  }
};

class CudaPackEverySpec : public CudaPack, public testing::WithParamInterface<int> {};

INSTANTIATE_TEST_SUITE_P(HeadDims, CudaPackEverySpec, testing::Values(16, 64, 80, 96, 128, 256),
                         testing::PrintToStringParamName());

TEST_P(CudaPackEverySpec, EqualsTheCpu) {
  const int head_dim = GetParam();
  const auto keys = every_kind_of_rows(head_dim, 1);
  const auto values = every_kind_of_rows(head_dim, 2);
  const OnDevice<std::uint16_t> device_keys(joined(keys));
  const OnDevice<std::uint16_t> device_values(joined(values));
  const std::vector<std::string> specs = tensor_specs();
  for (std::size_t n = 0; n < specs.size(); ++n) {
    const std::string text = fmt::format("k{},v{}", specs[n], specs[(n * 37 + 11) % specs.size()]);
    const PageFormat format = make_format(text, head_dim);
    const Packer packer = Packer::create(format, 1).value();
    const OnDevice<std::byte> pages(
        std::vector<std::byte>(keys.size() * format.page_bytes, kUntouched));
    std::vector<PackJob> jobs;
    for (std::size_t i = 0; i < keys.size(); ++i) {
      jobs.push_back({device_keys.get() + i * keys[0].size(),
                      device_values.get() + i * keys[0].size(),
                      pages.get() + i * format.page_bytes});
    }
    // A launch that may have many jobs has other blocks.
    if (n % 2 == 1) jobs.resize(300, PackJob{});
    const OnDevice<PackJob> device_jobs(jobs);
    const Status status =
        packer.run({.jobs = device_jobs.get(), .max_jobs = static_cast<int>(jobs.size())}, nullptr);
    ASSERT_TRUE(status) << status.error().message;
    const std::vector<std::byte> found = pages.values();
    for (std::size_t i = 0; i < keys.size(); ++i) {
      SCOPED_TRACE(fmt::format("{}, head_dim {}, data {}", text, head_dim, i));
      ASSERT_NO_FATAL_FAILURE(expect_equal(format, found.data() + i * format.page_bytes,
                                           pack(format, keys[i], values[i])));
    }
  }
}

TEST_F(CudaPack, SixteenBitsBesidePackedOnes) {
  for (const char* text : {"k16v16", "k16v3", "k4v16"}) {
    for (const int head_dim : {16, 80, 128}) {
      const PageFormat format = make_format(text, head_dim);
      const auto key = make_rows(Data::kNormal, head_dim, 3);
      const auto value = make_rows(Data::kHeavyTailed, head_dim, 4);
      const OnDevice<std::uint16_t> rows(joined({key, value}));
      const OnDevice<std::byte> page(std::vector<std::byte>(format.page_bytes, kUntouched));
      const OnDevice<PackJob> jobs({{rows.get(), rows.get() + key.size(), page.get()}});
      ASSERT_TRUE(
          Packer::create(format, 1).value().run({.jobs = jobs.get(), .max_jobs = 1}, nullptr));
      SCOPED_TRACE(fmt::format("{}, head_dim {}", text, head_dim));
      ASSERT_NO_FATAL_FAILURE(expect_equal(format, page.values().data(), pack(format, key, value)));
    }
  }
}

// A pool of pages and the rows of several heads, with gaps between everything.
class Pool {
 public:
  static constexpr int kHeads = 3;
  static constexpr int kHeadDim = 64;
  static constexpr int kTokenStride = kHeadDim + 8;
  static constexpr int kHeadStride = kPageTokens * kTokenStride + 40;
  static constexpr int kJobs = 40;

  Pool()
      : format_(make_format("k4:affine,v2:channel", kHeadDim)),
        page_head_stride_(format_.page_bytes + 256),
        page_stride_(kHeads * page_head_stride_ + 128),
        rows_(std::size_t{2 * kJobs} * kHeads * kHeadStride),
        device_rows_(fill(rows_)),
        pages_(std::vector<std::byte>(kJobs * page_stride_, kUntouched)) {}

  const PageFormat& format() const { return format_; }

  PackBatch batch() const {
    return {.max_jobs = kJobs,
            .row_head_stride = kHeadStride,
            .row_token_stride = kTokenStride,
            .page_head_stride = static_cast<std::int64_t>(page_head_stride_)};
  }

  PackJob job(int index) const {
    return {device_rows_.get() + start(index, 0, true), device_rows_.get() + start(index, 0, false),
            pages_.get() + index * page_stride_};
  }

  void clear() { pages_.set(std::vector<std::byte>(kJobs * page_stride_, kUntouched)); }

  // Pages of the jobs that `packed` holds are packed, all other bytes as they were.
  void expect_packed(const std::vector<int>& packed) const {
    std::vector<std::byte> expected(kJobs * page_stride_, kUntouched);
    for (const int index : packed) {
      for (int head = 0; head < kHeads; ++head) {
        const auto page = pack(format_, rows(index, head, true), rows(index, head, false));
        std::copy(page.begin(), page.end(),
                  expected.begin() + index * page_stride_ + head * page_head_stride_);
      }
    }
    const std::vector<std::byte> found = pages_.values();
    for (std::size_t i = 0; i < expected.size(); ++i) {
      ASSERT_EQ(found[i], expected[i])
          << "job " << i / page_stride_ << ", byte " << i % page_stride_;
    }
  }

 private:
  static const std::vector<std::uint16_t>& fill(std::vector<std::uint16_t>& rows) {
    std::mt19937 random(7);
    std::normal_distribution<float> normal;
    for (std::uint16_t& number : rows) number = to_half(normal(random)).bits;
    return rows;
  }

  static std::size_t start(int index, int head, bool is_key) {
    return (std::size_t{2} * index + (is_key ? 0 : 1)) * kHeads * kHeadStride +
           std::size_t(head) * kHeadStride;
  }

  std::vector<Half> rows(int index, int head, bool is_key) const {
    std::vector<Half> result;
    for (int token = 0; token < kPageTokens; ++token) {
      for (int channel = 0; channel < kHeadDim; ++channel) {
        result.push_back({rows_[start(index, head, is_key) + token * kTokenStride + channel]});
      }
    }
    return result;
  }

  PageFormat format_;
  std::size_t page_head_stride_;
  std::size_t page_stride_;
  std::vector<std::uint16_t> rows_;
  OnDevice<std::uint16_t> device_rows_;
  OnDevice<std::byte> pages_;
};

// One captured launch packs whatever the jobs in device memory say when it is replayed.
TEST_F(CudaPack, ReplayedGraphsFollowTheJobs) {
  Pool pool;
  const Packer packer = Packer::create(pool.format(), Pool::kHeads).value();
  OnDevice<PackJob> jobs(std::vector<PackJob>(Pool::kJobs, PackJob{}));
  OnDevice<std::int32_t> count({0});
  PackBatch batch = pool.batch();
  batch.jobs = jobs.get();
  batch.job_count = count.get();

  cudaStream_t stream = nullptr;
  check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t executable = nullptr;
  check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  ASSERT_TRUE(packer.run(batch, stream));
  check(cudaStreamEndCapture(stream, &graph));
  check(cudaGraphInstantiate(&executable, graph, 0));

  const auto replay = [&](const std::vector<int>& listed, std::optional<int> skipped) {
    std::vector<PackJob> list(Pool::kJobs, PackJob{});
    std::vector<int> packed;
    for (std::size_t i = 0; i < listed.size(); ++i) {
      list[i] = pool.job(listed[i]);
      if (listed[i] == skipped) list[i].page = nullptr;
      if (listed[i] != skipped) packed.push_back(listed[i]);
    }
    pool.clear();
    jobs.set(list);
    count.set({static_cast<std::int32_t>(listed.size())});
    check(cudaGraphLaunch(executable, stream));
    check(cudaStreamSynchronize(stream));
    pool.expect_packed(packed);
  };
  std::vector<int> all;
  for (int i = 0; i < Pool::kJobs; ++i) all.push_back(Pool::kJobs - 1 - i);
  replay({5, 31, 0}, std::nullopt);
  replay({}, std::nullopt);
  replay(all, std::nullopt);
  replay({9, 8, 7, 33}, 8);

  cudaGraphExecDestroy(executable);
  cudaGraphDestroy(graph);
  cudaStreamDestroy(stream);
}

TEST_F(CudaPack, WithoutACountAllJobsArePacked) {
  Pool pool;
  const Packer packer = Packer::create(pool.format(), Pool::kHeads).value();
  const OnDevice<PackJob> jobs({pool.job(3), PackJob{}, pool.job(1)});
  PackBatch batch = pool.batch();
  batch.jobs = jobs.get();
  batch.max_jobs = 3;
  ASSERT_TRUE(packer.run(batch, nullptr));
  pool.expect_packed({3, 1});
}

// A second Packer must not change what the first one's launches may use.
TEST_F(CudaPack, PackersOfAllSizesLiveSideBySide) {
  const PageFormat large = make_format("k8:channel:affine:g16,v8:affine", 256);
  const Packer first = Packer::create(large, 1).value();
  [[maybe_unused]] const Packer second = Packer::create(make_format("k1,v1", 16), 1).value();
  const auto rows = make_rows(Data::kNormal, 256, 5);
  const OnDevice<std::uint16_t> device_rows(joined({rows}));
  const OnDevice<std::byte> page(std::vector<std::byte>(large.page_bytes, kUntouched));
  const OnDevice<PackJob> jobs({{device_rows.get(), device_rows.get(), page.get()}});
  const Status status = first.run({.jobs = jobs.get(), .max_jobs = 1}, nullptr);
  ASSERT_TRUE(status) << status.error().message;
  ASSERT_NO_FATAL_FAILURE(expect_equal(large, page.values().data(), pack(large, rows, rows)));
}

TEST_F(CudaPack, RefusesWhatItCannotDo) {
  const PageFormat format = make_format("k4v2", 128);
  EXPECT_FALSE(Packer::create(format, 0));
  const Packer packer = Packer::create(format, 2).value();
  EXPECT_FALSE(packer.run({.max_jobs = 0}, nullptr));
  EXPECT_FALSE(packer.run({.max_jobs = 1, .row_token_stride = 129}, nullptr));
  EXPECT_FALSE(packer.run({.max_jobs = 1, .page_head_stride = 64}, nullptr));
}

}  // namespace
}  // namespace kvq::cuda
