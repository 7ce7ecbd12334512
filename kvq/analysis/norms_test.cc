#include "kvq/analysis/norms.h"

#include <gtest/gtest.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "kvq/analysis/spectral_norm.h"
#include "kvq/base/file.h"
#include "kvq/base/test_directory.h"

namespace kvq {
namespace {

const std::filesystem::path kFixtures = std::filesystem::path(KVQ_SOURCE_DIR) / "tests/fixtures";

// By numpy (tests/fixtures/norms/make_norms.py).
const nlohmann::json& expected() {
  static const nlohmann::json kExpected =
      nlohmann::json::parse(read_file(kFixtures / "norms/norms.json").value());
  return kExpected;
}

// As make_norms.py makes it, [rows, columns].
std::vector<float> make_matrix(const nlohmann::json& entry) {
  const auto seed = entry["seed"].get<std::uint32_t>();
  const auto columns = entry["columns"].get<std::uint32_t>();
  std::vector<float> matrix(entry["rows"].get<std::size_t>() * columns);
  for (std::size_t i = 0; i < matrix.size(); ++i) {
    const auto row = static_cast<std::uint32_t>(i / columns);
    const auto column = static_cast<std::uint32_t>(i % columns);
    std::uint32_t hash = seed + row * 2654435761U + column * 2246822519U;
    hash = (hash ^ (hash >> 15)) * 3266489917U;
    hash = (hash ^ (hash >> 13)) * 668265263U;
    matrix[i] = static_cast<float>(hash / 0x1p31 - 1);
  }
  for (const auto& lift : entry["lifts"]) {
    matrix[lift[0].get<std::size_t>() * columns + lift[1].get<std::size_t>()] +=
        lift[2].get<float>();
  }
  return matrix;
}

TEST(SpectralNorm, AgreesWithNumpy) {
  for (const auto& entry : expected()["matrices"]) {
    const std::vector<float> matrix = make_matrix(entry);
    const double norm = spectral_norm(matrix.data(), entry["rows"], entry["columns"]);
    EXPECT_NEAR(norm / entry["spectral"].get<double>(), 1, 1e-8) << entry;
  }
}

TEST(SpectralNorm, ExtremeScales) {
  EXPECT_EQ(spectral_norm(std::vector<float>(12, 0).data(), 3, 4), 0);
  for (const float scale : {1e-30F, 3e38F}) {
    const std::vector<float> diagonal = {scale, 0, 0, scale / 2};
    EXPECT_NEAR(spectral_norm(diagonal.data(), 2, 2) / scale, 1, 1e-9);
  }
}

Result<NormTable> measure(const std::filesystem::path& directory, Norm norm) {
  KVQ_ASSIGN_OR_RETURN(const ModelConfig config, read_config(directory));
  KVQ_ASSIGN_OR_RETURN(const Checkpoint checkpoint, Checkpoint::open(directory));
  ThreadPool threads(2);
  return measure_norms(config, checkpoint, norm, threads);
}

void expect_norms(const nlohmann::json& layers, const std::string& norm,
                  const std::vector<double>& whole, const std::vector<std::vector<double>>& heads) {
  ASSERT_EQ(whole.size(), layers.size());
  for (std::size_t layer = 0; layer < whole.size(); ++layer) {
    EXPECT_NEAR(whole[layer] / layers[layer]["whole"][norm].get<double>(), 1, 1e-8);
    ASSERT_EQ(heads[layer].size(), layers[layer]["heads"].size());
    for (std::size_t head = 0; head < heads[layer].size(); ++head) {
      EXPECT_NEAR(heads[layer][head] / layers[layer]["heads"][head][norm].get<double>(), 1, 1e-8);
    }
  }
}

// Sharded and whole files in bf16, fp16 and fp32.
TEST(Norms, AgreeWithNumpy) {
  ASSERT_EQ(expected()["checkpoints"].size(), 4);
  for (const auto& [name, entry] : expected()["checkpoints"].items()) {
    for (const auto& [norm, text] :
         {std::pair(Norm::kFrobenius, "frobenius"), {Norm::kSpectral, "spectral"}}) {
      const auto table = measure(kFixtures / "checkpoints" / name, norm);
      ASSERT_TRUE(table) << table.error().message;
      EXPECT_EQ(table->norm, text);
      EXPECT_EQ(table->model.identity.size(), 16);
      EXPECT_EQ(table->model.layers, static_cast<int>(table->keys.size()));
      expect_norms(entry["w_k"], text, table->keys, table->key_heads);
      expect_norms(entry["w_v"], text, table->values, table->value_heads);
    }
  }
}

// A model of one layer, 2 heads of 16 channels and 32 hidden numbers, with these projections.
void write_model(const TestDirectory& directory, const std::vector<float>& keys,
                 const std::vector<float>& values) {
  directory.write("config.json",
                  R"({"model_type": "llama", "vocab_size": 8, "hidden_size": 32,
                      "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
                      "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 64})");
  const std::string header = R"({"model.layers.0.self_attn.k_proj.weight": {"dtype": "F32",
      "shape": [32, 32], "data_offsets": [0, 4096]}, "model.layers.0.self_attn.v_proj.weight":
      {"dtype": "F32", "shape": [32, 32], "data_offsets": [4096, 8192]}})";
  const std::uint64_t length = header.size();
  std::string file(reinterpret_cast<const char*>(&length), sizeof length);
  file += header;
  for (const auto* matrix : {&keys, &values}) {
    file.append(reinterpret_cast<const char*>(matrix->data()), matrix->size() * sizeof(float));
  }
  directory.write("model.safetensors", file);
}

TEST(Norms, RefusesWeightsWithoutANorm) {
  const std::vector<float> good(1024, 1);
  std::vector<float> bad = good;
  bad[33 * 29 + 2] = NAN;  // row 29, column 31
  for (const Norm norm : {Norm::kFrobenius, Norm::kSpectral}) {
    TestDirectory directory;
    write_model(directory, good, bad);
    const std::string where = directory.path().string();
    expect_error(measure(directory.path(), norm),
                 where +
                     ": value projection of layer 0: row 29, column 31: expected a finite number, "
                     "found nan");
    bad[33 * 29 + 2] = INFINITY;
    write_model(directory, bad, good);
    expect_error(measure(directory.path(), norm), "key projection of layer 0: row 29, column 31",
                 "found inf");
    write_model(directory, std::vector<float>(1024, 0), good);
    expect_error(measure(directory.path(), norm),
                 where + ": key projection of layer 0: expected weights, found zeros only");
    write_model(directory, good, good);
    const auto table = measure(directory.path(), norm);
    ASSERT_TRUE(table) << table.error().message;
    EXPECT_NEAR(table->keys[0], 32, 1e-6);
    EXPECT_NEAR(table->key_heads[0][1], std::sqrt(512.0), 1e-6);
    bad[33 * 29 + 2] = NAN;
  }
}

}  // namespace
}  // namespace kvq
