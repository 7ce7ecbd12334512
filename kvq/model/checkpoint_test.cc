#include "kvq/model/checkpoint.h"

#include <gtest/gtest.h>

#include <cstring>
#include <nlohmann/json.hpp>
#include <vector>

#include "kvq/base/half.h"
#include "kvq/base/test_directory.h"
#include "kvq/model/safetensors.h"

namespace kvq {
namespace {

// A safetensors file of this header and this much data, byte i = i mod 251.
std::string safetensors(std::string_view header, std::size_t data_bytes) {
  const std::uint64_t length = header.size();
  std::string file(sizeof length, '\0');
  std::memcpy(file.data(), &length, sizeof length);
  file += header;
  for (std::size_t i = 0; i < data_bytes; ++i) file += static_cast<char>(i % 251);
  return file;
}

Result<Checkpoint> open_with(std::string_view file) {
  const TestDirectory directory;
  directory.write("model.safetensors", file);
  return Checkpoint::open(directory.path());
}

TEST(Checkpoint, ReadsEveryListedTypeAtAnyAlignment) {
  const std::vector<float> values = {1.5F, -0.25F, 3.0F};
  for (const std::string padding : {"", " ", "  ", "   "}) {
    std::string file =
        safetensors(R"({"f":{"dtype":"F32","shape":[3],"data_offsets":[0,12]},)"
                    R"("h":{"dtype":"F16","shape":[3,1],"data_offsets":[12,18]},)"
                    R"("b":{"dtype":"BF16","shape":[1,3],"data_offsets":[18,24]},)"
                    R"("i":{"dtype":"I64","shape":[1],"data_offsets":[24,32]},)"
                    R"("x":{"dtype":"FUTURE","shape":[9],"data_offsets":[32,33]},)"
                    R"("empty":{"dtype":"F32","shape":[0,4],"data_offsets":[33,33]},)"
                    R"("scalar":{"dtype":"BF16","shape":[],"data_offsets":[33,35]},)"
                    R"("__metadata__":{"format":"pt"}})" +
                        padding,
                    35);
    char* data = file.data() + file.size() - 35;
    std::memcpy(data, values.data(), 12);
    for (std::size_t i = 0; i < 3; ++i) {
      const Half half = to_half(values[i]);
      const BFloat16 brain = to_bfloat16(values[i]);
      std::memcpy(data + 12 + 2 * i, &half, 2);
      std::memcpy(data + 18 + 2 * i, &brain, 2);
    }
    const auto checkpoint = open_with(file);
    ASSERT_TRUE(checkpoint) << checkpoint.error().message;
    EXPECT_EQ(checkpoint->tensors().size(), 5U);
    EXPECT_FALSE(checkpoint->contains("i"));
    EXPECT_FALSE(checkpoint->contains("__metadata__"));
    for (const auto& [tensor_name, shape] : std::map<std::string, std::vector<std::int64_t>>{
             {"f", {3}}, {"h", {3, 1}}, {"b", {1, 3}}}) {
      const auto tensor = checkpoint->tensor(tensor_name, shape);
      ASSERT_TRUE(tensor) << tensor.error().message;
      std::vector<float> read(3);
      read_floats(*tensor, read.data());
      EXPECT_EQ(read, values) << tensor_name;
    }
    EXPECT_EQ(checkpoint->tensors().find("scalar")->second.elements(), 1);
    EXPECT_EQ(checkpoint->tensors().find("empty")->second.elements(), 0);
    expect_error(checkpoint->tensor("f", {4}), "model.safetensors", "\"f\"", "[4]", "[3]");
    expect_error(checkpoint->tensor("i", {1}), "model.safetensors", "\"i\"", "BF16", "I64");
    expect_error(checkpoint->tensor("absent", {1}), "\"absent\"", "not found");
  }
}

TEST(Checkpoint, ReadsLongTensorsWhole) {
  constexpr int kCount = 10001;
  std::string file =
      safetensors(R"({"h":{"dtype":"F16","shape":[10001],"data_offsets":[0,20002]}})", 2 * kCount);
  char* data = file.data() + file.size() - 2 * kCount;
  for (int i = 0; i < kCount; ++i) {
    const Half half{static_cast<std::uint16_t>(i)};
    std::memcpy(data + 2 * i, &half, 2);
  }
  const auto checkpoint = open_with(file);
  ASSERT_TRUE(checkpoint) << checkpoint.error().message;
  std::vector<float> values(kCount);
  read_floats(*checkpoint->tensor("h", {kCount}), values.data());
  for (int i = 0; i < kCount; ++i) {
    ASSERT_EQ(values[static_cast<std::size_t>(i)], to_float(Half{static_cast<std::uint16_t>(i)}));
  }
}

TEST(Checkpoint, RefusesBrokenLengths) {
  expect_error(open_with(""), "model.safetensors", "at least 8 bytes", "found 0");
  expect_error(open_with("1234567"), "at least 8 bytes", "found 7");
  expect_error(open_with(std::string(8, '\xff') + "{}"), "header length", "at most 2",
               "18446744073709551615");
  std::string beyond = safetensors("{}", 0);
  beyond[0] = 3;
  expect_error(open_with(beyond), "header length", "at most 2", "found 3");
  EXPECT_TRUE(open_with(safetensors("{}", 0)));
}

TEST(Checkpoint, RefusesBrokenJson) {
  for (const char* header :
       {"", "{", "{\"a\":}", "nope", "{} {}", "{\"\xff\":1}", "{\"a\":1e999}"}) {
    expect_error(open_with(safetensors(header, 0)), "model.safetensors", "header",
                 "not valid JSON");
  }
  expect_error(open_with(safetensors("[1]", 0)), "header", "expected a JSON object", "[1]");
  expect_error(open_with(safetensors("3", 0)), "header", "expected a JSON object", "3");
  expect_error(open_with(safetensors(std::string(100000, '['), 0)), "not valid JSON");
}

struct BadTensor {
  const char* value;  // of tensor "t"; the file holds 16 bytes of data
  const char* field;
  const char* reason;
};

TEST(Checkpoint, RefusesBrokenTensors) {
  constexpr BadTensor kCases[] = {
      {"3", "\"t\"", "expected an object, found 3"},
      {"[]", "\"t\"", "expected an object"},
      {R"({"shape":[4],"data_offsets":[0,16]})", "dtype", "expected a string, found nothing"},
      {R"({"dtype":7,"shape":[4],"data_offsets":[0,16]})", "dtype", "found 7"},
      {R"({"dtype":"F32","data_offsets":[0,16]})", "shape", "expected a list, found nothing"},
      {R"({"dtype":"F32","shape":4,"data_offsets":[0,16]})", "shape", "found 4"},
      {R"({"dtype":"F32","shape":[-4],"data_offsets":[0,16]})", "shape", "[-4]"},
      {R"({"dtype":"F32","shape":[4.0],"data_offsets":[0,16]})", "shape", "[4.0]"},
      {R"({"dtype":"F32","shape":["4"],"data_offsets":[0,16]})", "shape", "integers"},
      {R"({"dtype":"F32","shape":[18446744073709551615],"data_offsets":[0,16]})", "shape", "1844"},
      {R"({"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,16]})", "shape", "2^61"},
      {R"({"dtype":"F32","shape":[2305843009213693953],"data_offsets":[0,16]})", "shape", "2^61"},
      {R"({"dtype":"F4","shape":[3],"data_offsets":[0,16]})", "shape", "whole number of bytes"},
      {R"({"dtype":"F32","shape":[3],"data_offsets":[0,16]})", "F32 of shape [3]", "12 bytes"},
      {R"({"dtype":"I64","shape":[3],"data_offsets":[0,16]})", "I64 of shape [3]", "24 bytes"},
      {R"({"dtype":"F32","shape":[],"data_offsets":[0,16]})", "F32 of shape []", "4 bytes"},
      {R"({"dtype":"F32","shape":[4]})", "data_offsets", "found nothing"},
      {R"({"dtype":"F32","shape":[4],"data_offsets":[0]})", "data_offsets", "two integers"},
      {R"({"dtype":"F32","shape":[4],"data_offsets":[0,16,16]})", "data_offsets", "two integers"},
      {R"({"dtype":"F32","shape":[4],"data_offsets":[-16,0]})", "data_offsets", "two integers"},
      {R"({"dtype":"F32","shape":[4],"data_offsets":[16,0]})", "data_offsets", "begin <= end"},
      {R"({"dtype":"F32","shape":[5],"data_offsets":[0,20]})", "data_offsets", "16 bytes"},
      {R"({"dtype":"F32","shape":[1],"data_offsets":[18446744073709551611,18446744073709551615]})",
       "data_offsets", "16 bytes"},
      {R"({"dtype":"FUTURE","shape":[1],"data_offsets":[0,17]})", "data_offsets", "16 bytes"},
  };
  for (const BadTensor& bad : kCases) {
    SCOPED_TRACE(bad.value);
    const std::string header = fmt::format(R"({{"t":{}}})", bad.value);
    expect_error(open_with(safetensors(header, 16)), "model.safetensors: tensor \"t\"", bad.field,
                 bad.reason);
  }
}

TEST(Checkpoint, RefusesHolesAndOverlaps) {
  constexpr const char* kTwo = R"({{"a":{{"dtype":"U8","shape":[{1}],"data_offsets":[{0},{2}]}},)"
                               R"("b":{{"dtype":"U8","shape":[{4}],"data_offsets":[{3},{5}]}}}})";
  const auto two = [&](int a_begin, int a_end, int b_begin, int b_end) {
    const std::string header = fmt::format(fmt::runtime(kTwo), a_begin, a_end - a_begin, a_end,
                                           b_begin, b_end - b_begin, b_end);
    return open_with(safetensors(header, 16));
  };
  EXPECT_TRUE(two(0, 8, 8, 16));
  EXPECT_TRUE(two(9, 16, 0, 9));
  expect_error(two(0, 9, 8, 16), "\"b\"", "offset 9, found 8", "overlaps");
  expect_error(two(0, 16, 0, 16), "offset 16, found 0", "overlaps");
  expect_error(two(0, 7, 8, 16), "\"b\"", "offset 7, found 8", "no tensor");
  expect_error(two(1, 8, 8, 16), "\"a\"", "offset 0, found 1", "no tensor");
  expect_error(two(0, 8, 8, 15), "cover 15 bytes", "holds 16");
  expect_error(open_with(safetensors("{}", 1)), "cover 0 bytes", "holds 1");
}

TEST(Checkpoint, RefusesBrokenMetadata) {
  expect_error(open_with(safetensors(R"({"__metadata__":[]})", 0)), "__metadata__", "[]");
  expect_error(open_with(safetensors(R"({"__metadata__":{"a":1}})", 0)), "__metadata__");
}

TEST(Checkpoint, EveryTruncationAndEveryFlippedByteIsSafe) {
  const std::string good = safetensors(R"({"a":{"dtype":"F16","shape":[2,2],"data_offsets":[0,8]},)"
                                       R"("b":{"dtype":"I8","shape":[4],"data_offsets":[8,12]}})",
                                       12);
  const auto parse = [](const std::string& file) {
    return parse_safetensors(std::as_bytes(std::span(file)), "file");
  };
  ASSERT_TRUE(parse(good));
  for (std::size_t length = 0; length < good.size(); ++length) {
    EXPECT_FALSE(parse(good.substr(0, length))) << length;
  }
  for (std::size_t i = 0; i < good.size() - 12; ++i) {
    for (int bit = 0; bit < 8; ++bit) {
      std::string bad = good;
      bad[i] = static_cast<char>(bad[i] ^ 1 << bit);
      const auto header = parse(bad);
      if (!header) continue;
      for (const SafetensorsEntry& entry : header->entries) {
        EXPECT_LE(entry.begin, entry.end);
        EXPECT_LE(header->data_begin + entry.end, bad.size());
      }
    }
  }
}

constexpr const char* kOneTensor = R"({"T":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})";

std::string shard_of(const std::string& tensor_name) {
  std::string header = kOneTensor;
  header.replace(header.find('T'), 1, tensor_name);
  return safetensors(header, 8);
}

TEST(Checkpoint, JoinsShards) {
  const TestDirectory directory;
  directory.write("one.safetensors", shard_of("a"));
  directory.write("two.safetensors", shard_of("b"));
  directory.write("model.safetensors.index.json",
                  R"({"metadata":{},"weight_map":{"a":"one.safetensors","b":"two.safetensors"}})");
  const auto checkpoint = Checkpoint::open(directory.path());
  ASSERT_TRUE(checkpoint) << checkpoint.error().message;
  EXPECT_TRUE(checkpoint->tensor("a", {2}));
  EXPECT_TRUE(checkpoint->tensor("b", {2}));
  expect_error(checkpoint->tensor("b", {3}), "two.safetensors", "\"b\"", "[3]", "[2]");
}

TEST(Checkpoint, RefusesBrokenIndexes) {
  const TestDirectory directory;
  expect_error(Checkpoint::open(directory.path()), directory.path().string(), "model.safetensors",
               "found neither");
  expect_error(Checkpoint::open(directory.path() / "absent"), "absent", "found neither");
  directory.write("one.safetensors", shard_of("a"));
  const auto with_index = [&](std::string_view index) {
    directory.write("model.safetensors.index.json", index);
    return Checkpoint::open(directory.path());
  };
  expect_error(with_index("{"), "index.json", "not valid JSON");
  expect_error(with_index("{}"), "index.json", "weight_map", "found nothing");
  expect_error(with_index(R"({"weight_map":[]})"), "weight_map", "[]");
  expect_error(with_index(R"({"weight_map":{}})"), "weight_map", "found none");
  expect_error(with_index(R"({"weight_map":{"a":1}})"), "weight_map", "\"a\"", "found 1");
  expect_error(with_index(R"({"weight_map":{"a":"../one.safetensors"}})"), "\"a\"",
               "../one.safetensors");
  expect_error(with_index(R"({"weight_map":{"a":"two.safetensors"}})"), "index.json",
               "two.safetensors", "does not exist");
  expect_error(with_index(R"({"weight_map":{"b":"one.safetensors"}})"), "one.safetensors", "\"b\"",
               "index.json");
  EXPECT_TRUE(with_index(R"({"weight_map":{"a":"one.safetensors"}})"));
}

TEST(Checkpoint, OpensTheDemoModel) {
  const auto checkpoint = Checkpoint::open(KVQ_SOURCE_DIR "/models/demo-llama");
  ASSERT_TRUE(checkpoint) << checkpoint.error().message;
  const auto embedding = checkpoint->tensor("model.embed_tokens.weight", {8192, 384});
  ASSERT_TRUE(embedding) << embedding.error().message;
  EXPECT_EQ(embedding->type, DataType::kBFloat16);
}

// Sets an environment variable for a scope.
class ScopedVariable {
 public:
  ScopedVariable(const char* variable_name, const std::string& value) : name_(variable_name) {
    if (const char* before = std::getenv(variable_name)) before_ = before;
    ::setenv(variable_name, value.c_str(), 1);
  }
  ScopedVariable(const ScopedVariable&) = delete;
  ScopedVariable& operator=(const ScopedVariable&) = delete;
  ~ScopedVariable() { ::setenv(name_, before_.c_str(), 1); }

 private:
  const char* name_;
  std::string before_;
};

TEST(FindModel, TakesDirectoriesAndCachedIds) {
  const TestDirectory directory;
  const ScopedVariable hub("HF_HUB_CACHE", "");
  const ScopedVariable home("HF_HOME", directory.path().string());
  directory.write("hub/models--org--tiny-1.0/refs/main", "0123abcd\n");
  directory.write("hub/models--org--tiny-1.0/snapshots/0123abcd/config.json", "{}");
  directory.write("hub/models--org--gone/refs/main", "4567");
  directory.write("hub/models--org--bad/refs/main", "../../../etc");
  directory.write("hub/models--org--bare/blobs/x", "");
  directory.write("file", "");

  EXPECT_EQ(find_model(directory.path().string()).value(), directory.path());
  EXPECT_EQ(find_model("org/tiny-1.0").value(),
            directory.path() / "hub/models--org--tiny-1.0/snapshots/0123abcd");
  expect_error(find_model((directory.path() / "file").string()), "file",
               "expected a model's directory");
  expect_error(find_model("org/absent"), "org/absent", "hub/models--org--absent");
  expect_error(find_model("org/gone"), "refs/main", "snapshots/4567");
  expect_error(find_model("org/bad"), "refs/main", "expected a commit hash", "../../../etc");
  expect_error(find_model("org/bare"), "refs/main");
  for (const char* model : {"", "a/b/c", "../x", "/no/such/place", "a b", "org/"}) {
    expect_error(find_model(model), "neither a directory nor a model id");
  }
  const ScopedVariable direct("HF_HUB_CACHE", (directory.path() / "hub").string());
  EXPECT_TRUE(find_model("org/tiny-1.0"));
}

}  // namespace
}  // namespace kvq
