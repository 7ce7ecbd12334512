// Plain rows that the device makes of a cache against unpack_page(). Skipped where there is no
// device.
#include "kvq/attention/cuda/dequantize.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "kvq/attention/cuda/device_batch.h"
#include "kvq/codec/pack.h"

namespace kvq::cuda {
namespace {

constexpr int kHeads = 2;
constexpr int kPages = 3;
constexpr int kSinks = 4;
constexpr int kTail = 70;  // of two row blocks
constexpr int kTokens = kSinks + kPages * kPageTokens + kTail;

class CudaDequantize : public testing::Test {
 protected:
  void SetUp() override {
    int devices = 0;
    if (cudaGetDeviceCount(&devices) != cudaSuccess || devices < 1) GTEST_SKIP() << "no device";
  }

  std::vector<Half> random_rows(std::size_t count) {
    std::vector<Half> rows(count);
    for (Half& number : rows) number = to_half(normal_(random_));
    return rows;
  }

  template <typename T>
  static DeviceBuffer upload(const std::vector<T>& values) {
    DeviceBuffer buffer(values.size() * sizeof(T));
    cudaMemcpy(buffer.get(), values.data(), values.size() * sizeof(T), cudaMemcpyHostToDevice);
    return buffer;
  }

  // One sequence of kTokens tokens.
  void expect_rows(const std::string& spec, int head_dim);

  std::mt19937 random_{7};
  std::normal_distribution<float> normal_;
};

void CudaDequantize::expect_rows(const std::string& spec, int head_dim) {
  SCOPED_TRACE(spec + " d" + std::to_string(head_dim));
  const PageFormat format = PageFormat::create(parse_layer_spec(spec).value(), head_dim).value();
  const std::size_t dim = static_cast<std::size_t>(head_dim);
  const std::size_t numbers = kPageTokens * dim;
  std::vector<float> expected[2];
  for (auto& rows : expected) rows.resize(kHeads * kTokens * dim);
  const auto expect = [&](int kind, int head, int token, const float* row, std::size_t count) {
    std::copy_n(row, count,
                expected[kind].begin() + (head * kTokens + token) * static_cast<int>(dim));
  };

  // Page i lies at block kPages - 1 - i.
  std::vector<std::byte> pages(kPages * kHeads * format.page_bytes);
  for (int page = 0; page < kPages; ++page) {
    for (int head = 0; head < kHeads; ++head) {
      std::byte* at = pages.data() + static_cast<std::size_t>((kPages - 1 - page) * kHeads + head) *
                                         format.page_bytes;
      alignas(128) std::byte aligned[kPageTokens * 256 * 4];
      pack_page(format, random_rows(numbers).data(), random_rows(numbers).data(), aligned,
                host_isa());
      std::copy_n(aligned, format.page_bytes, at);
      std::vector<float> key(numbers);
      std::vector<float> value(numbers);
      unpack_page(format, aligned, key.data(), value.data());
      expect(0, head, kSinks + page * kPageTokens, key.data(), numbers);
      expect(1, head, kSinks + page * kPageTokens, value.data(), numbers);
    }
  }
  // [key, value][heads][rows][head_dim], of the sinks and of two row blocks.
  const auto rows_of = [&](int rows, int used, int first) {
    std::vector<Half> block = random_rows(2 * kHeads * static_cast<std::size_t>(rows) * dim);
    for (int part = 0; part < 2 * kHeads; ++part) {
      std::vector<float> floats(static_cast<std::size_t>(used) * dim);
      to_float(block.data() + static_cast<std::size_t>(part * rows) * dim, floats.data(),
               floats.size());
      expect(part / kHeads, part % kHeads, first, floats.data(), floats.size());
    }
    return block;
  };
  const int tail_first = kSinks + kPages * kPageTokens;
  const std::vector<Half> sinks = rows_of(kSinks, kSinks, 0);
  std::vector<Half> tail = rows_of(kPageTokens, kPageTokens, tail_first);
  const std::vector<Half> last = rows_of(kPageTokens, kTail - kPageTokens, tail_first + 64);
  tail.insert(tail.end(), last.begin(), last.end());

  const DeviceBuffer page_memory = upload(pages);
  const DeviceBuffer sink_memory = upload(sinks);
  const DeviceBuffer tail_memory = upload(tail);
  const DeviceBuffer table = upload(std::vector<std::int32_t>{2, 1, 0});
  const DeviceBuffer blocks = upload(std::vector<std::int32_t>{0, kPages, 0, 1});
  const DeviceBuffer lengths = upload(std::vector<SequenceLength>{{kPages, kSinks, kTail}});
  DecodeBatch batch;
  batch.sequences = 1;
  batch.pages = page_memory.as<std::byte>();
  batch.page_table = table.as<std::int32_t>();
  batch.head_stride = static_cast<std::int64_t>(format.page_bytes);
  batch.page_stride = kHeads * batch.head_stride;
  batch.table_stride = kPages;
  batch.lengths = lengths.as<SequenceLength>();
  const auto rows_at = [&](const DeviceBuffer& memory, int rows) {
    const std::int64_t head = rows * std::int64_t{head_dim};
    const auto* key = memory.as<std::uint16_t>();
    return RowBlock{key, key + kHeads * head, 2 * kHeads * head, head};
  };
  batch.sinks = rows_at(sink_memory, kSinks);
  batch.tail = rows_at(tail_memory, kPageTokens);
  batch.row_blocks = blocks.as<std::int32_t>();
  batch.row_blocks_stride = 4;

  const std::size_t bytes = expected[0].size() * sizeof(float);
  const DeviceBuffer key(bytes);
  const DeviceBuffer value(bytes);
  PlainRows rows;
  rows.key = key.get();
  rows.value = value.get();
  rows.token_stride = head_dim;
  rows.head_stride = rows.token_stride * kTokens;
  const Status run = Dequantize::create(format, kHeads).value().run(batch, kTokens, rows, nullptr);
  ASSERT_TRUE(run) << run.error().message;
  for (int kind = 0; kind < 2; ++kind) {
    std::vector<float> found(expected[kind].size());
    cudaMemcpy(found.data(), kind == 0 ? key.get() : value.get(), bytes, cudaMemcpyDeviceToHost);
    double worst = 0;
    for (std::size_t i = 0; i < found.size(); ++i) {
      // Not-a-number, which untouched memory holds, fails as well.
      const double error = std::abs(found[i] - expected[kind][i]);
      if (!(error <= worst)) worst = error;
    }
    EXPECT_LT(worst, 1e-5) << (kind == 0 ? "key" : "value");
  }
}

TEST_F(CudaDequantize, Widths) {
  for (const char* bits : {"1", "1.58", "2", "3", "4", "5", "6", "8", "16"}) {
    for (const int head_dim : {16, 64, 80, 128, 256}) {
      expect_rows(std::string("k") + bits + "v" + bits, head_dim);
    }
  }
}

TEST_F(CudaDequantize, AxesGroupsParameters) {
  for (const char* axis : {"token", "channel"}) {
    for (const int group : {16, 32, 64, 128, 256}) {
      for (const char* parameters : {"symmetric", "affine"}) {
        for (const char* rotation : {"none", "hadamard"}) {
          const std::string options =
              fmt::format(":g{}:{}:{}:minmax:{}", group, axis, parameters, rotation);
          expect_rows("k4" + options + ",v2" + options, 128);
          expect_rows("k3" + options + ",v1.58" + options, 80);
        }
      }
    }
  }
}

}  // namespace
}  // namespace kvq::cuda
