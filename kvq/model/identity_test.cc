#include "kvq/model/identity.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>

#include "kvq/base/test_directory.h"
#include "kvq/model/projection.h"

namespace kvq {
namespace {

const std::filesystem::path kCheckpoints =
    std::filesystem::path(KVQ_SOURCE_DIR) / "tests/fixtures/checkpoints";

std::string identity(const std::filesystem::path& directory) {
  const auto config = read_config(directory);
  const auto checkpoint = Checkpoint::open(directory);
  return model_identity(config.value(), checkpoint.value()).value();
}

TEST(Identity, SurvivesACopyAndFindsAnotherWeight) {
  const std::filesystem::path original = kCheckpoints / "llama3.2-tiny";
  const std::string expected = identity(original);
  EXPECT_EQ(expected.size(), 16);
  EXPECT_EQ(expected.find_first_not_of("0123456789abcdef"), std::string::npos);

  TestDirectory copy;
  std::filesystem::copy(original, copy.path(), std::filesystem::copy_options::recursive);
  EXPECT_EQ(identity(copy.path()), expected);

  // Another number in the first row of the last layer's values.
  std::size_t offset = 0;
  {
    const auto config = read_config(original).value();
    const auto checkpoint = Checkpoint::open(original).value();
    const auto first = value_projection(config, checkpoint, config.layers - 1).value();
    const auto file = MappedFile::open(original / "model.safetensors").value();
    const auto* begin = std::search(file.bytes().data(), file.bytes().data() + file.bytes().size(),
                                    first.data, first.data + 64);
    offset = static_cast<std::size_t>(begin - file.bytes().data());
  }
  std::fstream stream(copy.path() / "model.safetensors",
                      std::ios::in | std::ios::out | std::ios::binary);
  stream.seekp(static_cast<std::streamoff>(offset));
  stream.put('\x55');
  stream.close();
  EXPECT_NE(identity(copy.path()), expected);
}

TEST(Identity, DiffersBetweenModels) {
  std::vector<std::string> seen;
  seen.reserve(4);
  for (const char* name : {"llama3.1-tiny", "llama3.2-tiny", "qwen3-tiny", "llama-bias-tiny"}) {
    seen.push_back(identity(kCheckpoints / name));
    for (std::size_t i = 0; i + 1 < seen.size(); ++i) EXPECT_NE(seen[i], seen.back());
  }
}

}  // namespace
}  // namespace kvq
