// Packs a page, unpacks it and prints the error; then keeps a sequence in a packed cache.
#include <kvq/cache/sequence.h>
#include <kvq/codec/metrics.h>
#include <kvq/codec/pack.h>

#include <cstdio>
#include <memory>
#include <new>
#include <random>
#include <vector>

namespace {

constexpr int kHeadDim = 64;
constexpr int kKvHeads = 2;
constexpr int kTokens = 200;

// [count] numbers of a normal distribution.
std::vector<float> random_numbers(int count, unsigned seed) {
  std::mt19937 engine(seed);
  std::normal_distribution<float> normal;
  std::vector<float> result(static_cast<std::size_t>(count));
  for (float& number : result) number = normal(engine);
  return result;
}

struct AlignedDelete {
  void operator()(std::byte* bytes) const {
    ::operator delete (bytes, std::align_val_t{kvq::kPageAlignment});
  }
};

kvq::Status pack_one_page(const kvq::LayerSpec& spec) {
  KVQ_ASSIGN_OR_RETURN(const auto format, kvq::PageFormat::create(spec, kHeadDim));
  const int count = kvq::kPageTokens * kHeadDim;
  const auto key = random_numbers(count, 1);
  const auto value = random_numbers(count, 2);
  std::vector<kvq::Half> key_half(key.size());
  std::vector<kvq::Half> value_half(value.size());
  kvq::to_half(key.data(), key_half.data(), key.size());
  kvq::to_half(value.data(), value_half.data(), value.size());

  const std::unique_ptr<std::byte, AlignedDelete> page(static_cast<std::byte*>(
      ::operator new (format.page_bytes, std::align_val_t{kvq::kPageAlignment})));
  kvq::pack_page(format, key_half.data(), value_half.data(), page.get(), kvq::host_isa());
  std::vector<float> key_back(key.size());
  std::vector<float> value_back(value.size());
  kvq::unpack_page(format, page.get(), key_back.data(), value_back.data());

  const auto key_error = kvq::measure_error(key.data(), key_back.data(), key.size());
  const auto value_error = kvq::measure_error(value.data(), value_back.data(), value.size());
  std::printf("%s: %zu bytes a page, relative error of keys %.3f, of values %.3f\n",
              kvq::to_string(spec).c_str(), format.page_bytes, key_error.relative_error,
              value_error.relative_error);
  if (key_error.relative_error > 0.15 || value_error.relative_error > 0.4) {
    return kvq::fail("the errors are too large for {}", kvq::to_string(spec));
  }
  return {};
}

kvq::Status keep_a_sequence(const kvq::LayerSpec& layer) {
  const auto spec =
      std::make_shared<const kvq::CacheSpec>(kvq::CacheSpec::uniform(layer, 1, kKvHeads, kHeadDim));
  KVQ_ASSIGN_OR_RETURN(auto sequence,
                       kvq::Sequence::create(spec, kvq::PagePool::create(0), kvq::host_isa()));
  const auto rows = random_numbers(kTokens * kKvHeads * kHeadDim, 3);
  KVQ_RETURN_IF_ERROR(sequence.begin_chunk(kTokens));
  KVQ_RETURN_IF_ERROR(sequence.append(0, rows.data(), rows.data()));
  const auto bytes = sequence.bytes();
  std::printf("kept %d tokens in %d bytes, %d of them packed\n",
              static_cast<int>(sequence.length()), static_cast<int>(bytes.pages + bytes.exact),
              static_cast<int>(bytes.pages));
  if (bytes.pages == 0) return kvq::fail("no page was packed");
  return {};
}

kvq::Status run() {
  KVQ_ASSIGN_OR_RETURN(const auto spec, kvq::parse_layer_spec("k4v2"));
  KVQ_RETURN_IF_ERROR(pack_one_page(spec));
  return keep_a_sequence(spec);
}

}  // namespace

int main() {
  if (const auto status = run(); !status) {
    std::fprintf(stderr, "%s\n", status.error().message.c_str());
    return 1;
  }
  return 0;
}
