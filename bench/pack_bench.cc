// Packing and unpacking speed of one core: bytes of fp16 input (K and V rows) a second.
//
//   pack_bench --benchmark_filter=pack/avx512/k4v2
#include <benchmark/benchmark.h>

#include <random>
#include <string>
#include <vector>

#include "kvq/codec/pack.h"

namespace kvq {
namespace {

constexpr int kHeadDim = 128;
constexpr std::size_t kNumbers = std::size_t{kPageTokens} * kHeadDim;

std::vector<Half> random_rows(unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<Half> rows(kNumbers);
  for (Half& number : rows) number = to_half(normal(random));
  return rows;
}

void pack(benchmark::State& state, const PageFormat& format, Isa isa) {
  const std::vector<Half> key = random_rows(1);
  const std::vector<Half> value = random_rows(2);
  std::vector<std::byte> page(format.page_bytes);
  for (auto _ : state) {
    pack_page(format, key.data(), value.data(), page.data(), isa);
    benchmark::DoNotOptimize(page.data());
    benchmark::ClobberMemory();
  }
  state.SetBytesProcessed(state.iterations() * static_cast<long>(4 * kNumbers));
}

void unpack(benchmark::State& state, const PageFormat& format) {
  const std::vector<Half> key = random_rows(1);
  const std::vector<Half> value = random_rows(2);
  std::vector<std::byte> page(format.page_bytes);
  pack_page(format, key.data(), value.data(), page.data(), host_isa());
  std::vector<float> key_out(kNumbers);
  std::vector<float> value_out(kNumbers);
  for (auto _ : state) {
    unpack_page(format, page.data(), key_out.data(), value_out.data());
    benchmark::ClobberMemory();
  }
  state.SetBytesProcessed(state.iterations() * static_cast<long>(4 * kNumbers));
}

std::string with_options(int key_bits, int value_bits, const std::string& options) {
  return fmt::format("k{}{},v{}{}", key_bits, options, value_bits, options);
}

const int kRegistered = [] {
  const int widths[][2] = {{4, 2}, {8, 4}, {2, 2}, {3, 3}};
  std::vector<std::string> texts;
  for (const auto& [key, value] : widths) {
    for (const char* options :
         {"", ":channel:affine", ":channel:affine:none", ":minmax", ":affine:hqq"}) {
      texts.push_back(with_options(key, value, options));
    }
  }
  texts.emplace_back("k16v16");
  for (const std::string& text : texts) {
    const PageFormat format = PageFormat::create(parse_layer_spec(text).value(), kHeadDim).value();
    for (Isa isa : runnable_isas()) {
      benchmark::RegisterBenchmark(fmt::format("pack/{}/{}", name(isa), text).c_str(), pack, format,
                                   isa);
    }
    benchmark::RegisterBenchmark(("unpack/" + text).c_str(), unpack, format);
  }
  return 0;
}();

}  // namespace
}  // namespace kvq
