#include "kvq/model/config.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "kvq/base/test_directory.h"
#include "kvq/model/architecture.h"
#include "kvq/model/checkpoint.h"

namespace kvq {
namespace {

using Json = nlohmann::json;

Json llama() {
  return Json::parse(R"({
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 100,
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "hidden_act": "silu", "max_position_embeddings": 512,
    "rms_norm_eps": 1e-05, "rope_theta": 500000.0, "tie_word_embeddings": true,
    "eos_token_id": 7})");
}

Json qwen3() {
  Json config = llama();
  config["model_type"] = "qwen3";
  config["architectures"] = {"Qwen3ForCausalLM"};
  config["head_dim"] = 32;
  config["sliding_window"] = 4096;
  config["use_sliding_window"] = false;
  config["layer_types"] = {"full_attention", "full_attention", "full_attention"};
  return config;
}

Json llama3_scaling() {
  return Json::parse(R"({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
                         "high_freq_factor": 4, "original_max_position_embeddings": 8192})");
}

Result<ModelConfig> read(const Json& config) {
  const TestDirectory directory;
  directory.write("config.json", config.dump());
  return read_config(directory.path());
}

Result<ModelConfig> read_changed(Json config, const Json& changes) {
  config.update(changes);
  return read(config);
}

TEST(Config, ReadsLlama) {
  const auto config = read(llama());
  ASSERT_TRUE(config) << config.error().message;
  EXPECT_EQ(config->architecture, Architecture::kLlama);
  EXPECT_EQ(config->model_type, "llama");
  EXPECT_EQ(config->vocabulary, 100);
  EXPECT_EQ(config->hidden, 64);
  EXPECT_EQ(config->intermediate, 96);
  EXPECT_EQ(config->layers, 3);
  EXPECT_EQ(config->query_heads, 4);
  EXPECT_EQ(config->kv_heads, 2);
  EXPECT_EQ(config->head_dim, 16);
  EXPECT_EQ(config->context, 512);
  EXPECT_EQ(config->norm_epsilon, 1e-5);
  EXPECT_EQ(config->rope_theta, 500000);
  EXPECT_FALSE(config->rope_scaling.enabled);
  EXPECT_TRUE(config->tied_embeddings);
  EXPECT_FALSE(config->attention_bias);
  EXPECT_FALSE(config->mlp_bias);
  EXPECT_FALSE(config->qk_norm);
  EXPECT_EQ(config->stop_tokens, std::vector<int>{7});
}

TEST(Config, AppliesTheFamilysDefaults) {
  Json sparse = llama();
  for (const char* field : {"num_key_value_heads", "rms_norm_eps", "rope_theta", "architectures",
                            "tie_word_embeddings", "eos_token_id", "hidden_act"}) {
    sparse.erase(field);
  }
  const auto config = read(sparse);
  ASSERT_TRUE(config) << config.error().message;
  EXPECT_EQ(config->kv_heads, 4);
  EXPECT_EQ(config->norm_epsilon, 1e-6);
  EXPECT_EQ(config->rope_theta, 10000);
  EXPECT_FALSE(config->tied_embeddings);
  EXPECT_TRUE(config->stop_tokens.empty());
}

TEST(Config, ReadsQwen3) {
  const auto config = read(qwen3());
  ASSERT_TRUE(config) << config.error().message;
  EXPECT_EQ(config->architecture, Architecture::kQwen3);
  EXPECT_TRUE(config->qk_norm);
  EXPECT_EQ(config->head_dim, 32);
  EXPECT_FALSE(config->attention_bias);
  EXPECT_TRUE(read_changed(qwen3(), {{"attention_bias", true}})->attention_bias);
  expect_error(read_changed(qwen3(), {{"head_dim", nullptr}}), "head_dim", "found nothing");
  expect_error(read_changed(qwen3(), {{"num_key_value_heads", nullptr}}), "num_key_value_heads");
}

TEST(Config, ReadsBiases) {
  const auto config = read_changed(llama(), {{"attention_bias", true}, {"mlp_bias", true}});
  ASSERT_TRUE(config) << config.error().message;
  EXPECT_TRUE(config->attention_bias);
  EXPECT_TRUE(config->mlp_bias);
}

TEST(Config, ReadsEverySpellingOfRope) {
  const Json scaling = llama3_scaling();
  Json with_type = scaling;
  with_type.erase("rope_type");
  with_type["type"] = "llama3";
  Json with_theta = scaling;
  with_theta["rope_theta"] = 500000.0;
  Json only_parameters = llama();
  only_parameters.erase("rope_theta");
  only_parameters["rope_parameters"] = with_theta;
  Json plain_parameters = only_parameters;
  plain_parameters["rope_parameters"] = {{"rope_type", "default"}, {"rope_theta", 1e6}};
  for (const auto& config :
       {read_changed(llama(), {{"rope_scaling", scaling}}),
        read_changed(llama(), {{"rope_scaling", with_type}}),
        read_changed(llama(), {{"rope_parameters", with_theta}}), read(only_parameters)}) {
    ASSERT_TRUE(config) << config.error().message;
    EXPECT_TRUE(config->rope_scaling.enabled);
    EXPECT_EQ(config->rope_scaling.factor, 8);
    EXPECT_EQ(config->rope_scaling.low_frequency_factor, 1);
    EXPECT_EQ(config->rope_scaling.high_frequency_factor, 4);
    EXPECT_EQ(config->rope_scaling.original_context, 8192);
    EXPECT_EQ(config->rope_theta, 500000);
  }
  const auto plain = read(plain_parameters);
  ASSERT_TRUE(plain) << plain.error().message;
  EXPECT_FALSE(plain->rope_scaling.enabled);
  EXPECT_EQ(plain->rope_theta, 1e6);
  EXPECT_FALSE(
      read_changed(llama(), {{"rope_scaling", {{"type", "default"}}}})->rope_scaling.enabled);
}

TEST(Config, RefusesOtherRopes) {
  for (const char* type : {"yarn", "linear", "dynamic", "longrope"}) {
    for (const char* spelling : {"rope_scaling", "rope_parameters"}) {
      for (const char* key : {"type", "rope_type"}) {
        Json scaling = llama3_scaling();
        scaling.erase("rope_type");
        scaling[key] = type;
        expect_error(read_changed(llama(), {{spelling, scaling}}), "config.json", spelling, key,
                     "\"default\" or \"llama3\"", type);
      }
    }
  }
  const auto with = [](const char* field, const Json& value) {
    Json scaling = llama3_scaling();
    scaling[field] = value;
    return read_changed(llama(), {{"rope_scaling", scaling}});
  };
  for (const char* field :
       {"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"}) {
    for (const Json& value : {Json(nullptr), Json("8"), Json(0), Json(-1.0), Json(true)}) {
      expect_error(with(field, value), "config.json: rope_scaling", field, "a positive number",
                   value.is_null() ? "nothing" : value.dump());
    }
  }
  expect_error(with("factor", 0.5), "rope_scaling: factor", "1 or more", "0.5");
  expect_error(with("high_freq_factor", 1.0), "high_freq_factor", "more than low_freq_factor");
  expect_error(with("rope_type", nullptr), "rope_type", "found nothing");
  expect_error(with("type", "yarn"), "type", "rope_type's value", "yarn");
  expect_error(with("rope_theta", 9.0), "rope_theta", "500000", "9");
  expect_error(with("partial_rotary_factor", 0.5), "partial_rotary_factor", "0.5");
  expect_error(read_changed(llama(), {{"partial_rotary_factor", 0.5}}), "partial_rotary_factor");
  expect_error(read_changed(llama(), {{"rope_scaling", "llama3"}}), "rope_scaling", "an object");
  expect_error(read_changed(llama(), {{"rope_scaling", llama3_scaling()},
                                      {"rope_parameters", llama3_scaling()}}),
               "rope_scaling", "none beside rope_parameters");
}

TEST(Config, RefusesWhatIsNotBuilt) {
  expect_error(read_changed(llama(), {{"model_type", "gemma3"}}), "config.json: model_type",
               "\"llama\" or \"qwen3\"", "\"gemma3\"");
  expect_error(read_changed(llama(), {{"model_type", nullptr}}), "model_type", "found nothing");
  expect_error(read_changed(llama(), {{"architectures", {"LlamaForSequenceClassification"}}}),
               "architectures", "LlamaForCausalLM", "LlamaForSequenceClassification");
  expect_error(read_changed(llama(), {{"architectures", "LlamaForCausalLM"}}), "architectures",
               "a list");
  expect_error(read_changed(llama(), {{"hidden_act", "gelu"}}), "hidden_act", "silu", "gelu");
  expect_error(read_changed(llama(), {{"hidden_act", 3}}), "hidden_act", "a string", "3");
  expect_error(read_changed(llama(), {{"quantization_config", {{"bits", 4}}}}),
               "quantization_config");
  expect_error(read_changed(llama(), {{"sliding_window", 4096}}), "sliding_window", "4096");
  expect_error(read_changed(qwen3(), {{"use_sliding_window", true}}), "use_sliding_window", "true");
  expect_error(
      read_changed(qwen3(), {{"layer_types", {"full_attention", "sliding_attention", "x"}}}),
      "layer_types", "full_attention", "sliding_attention");
  expect_error(read_changed(qwen3(), {{"layer_types", {"full_attention"}}}), "layer_types",
               "each of 3 layers");
}

TEST(Config, RefusesBadShapes) {
  for (const char* field : {"vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
                            "num_attention_heads", "max_position_embeddings"}) {
    for (const Json& value : {Json(nullptr), Json(0), Json(-1), Json(2.5), Json("64"), Json(true),
                              Json(2147483648), Json(Json::array({1}))}) {
      expect_error(read_changed(llama(), {{field, value}}), "config.json", field,
                   "a positive integer", value.is_null() ? "nothing" : value.dump());
    }
  }
  expect_error(read_changed(llama(), {{"num_key_value_heads", 3}}), "num_key_value_heads",
               "a divisor of num_attention_heads (4)", "3");
  expect_error(read_changed(llama(), {{"num_key_value_heads", 8}}), "num_key_value_heads", "8");
  expect_error(read_changed(llama(), {{"hidden_size", 66}}), "hidden_size", "a multiple", "66");
  expect_error(read_changed(llama(), {{"head_dim", 15}}), "head_dim", "even", "15");
  expect_error(read_changed(llama(), {{"head_dim", 2147483646}}), "head_dim", "2147483646");
  for (const char* field : {"rms_norm_eps", "rope_theta"}) {
    expect_error(read_changed(llama(), {{field, 0}}), field, "a positive number", "0");
    expect_error(read_changed(llama(), {{field, "1"}}), field, "a positive number", "\"1\"");
  }
  for (const char* field : {"tie_word_embeddings", "attention_bias", "mlp_bias"}) {
    expect_error(read_changed(llama(), {{field, "yes"}}), field, "true or false", "yes");
  }
}

TEST(Config, FindsStopTokens) {
  const TestDirectory directory;
  directory.write("config.json", llama().dump());
  const auto with = [&](std::string_view generation) {
    directory.write("generation_config.json", generation);
    return read_config(directory.path());
  };
  EXPECT_EQ(with(R"({"eos_token_id": [5, 9]})")->stop_tokens, (std::vector<int>{5, 9}));
  EXPECT_EQ(with(R"({"eos_token_id": 5})")->stop_tokens, std::vector<int>{5});
  EXPECT_EQ(with(R"({"eos_token_id": null})")->stop_tokens, std::vector<int>{7});
  EXPECT_EQ(with("{}")->stop_tokens, std::vector<int>{7});
  for (const char* value : {"100", "-1", "\"5\"", "[5, 100]", "1.5", "[[5]]", "{\"a\": 1}"}) {
    expect_error(with(fmt::format(R"({{"eos_token_id": {}}})", value)), "generation_config.json",
                 "eos_token_id", "below 100");
  }
  expect_error(with("[]"), "generation_config.json", "expected a JSON object");
  std::filesystem::remove(directory.path() / "generation_config.json");
  directory.write("config.json", [] {
    Json config = llama();
    config["eos_token_id"] = 100;
    return config.dump();
  }());
  expect_error(read_config(directory.path()), "config.json", "eos_token_id", "100");
}

TEST(Config, RefusesBrokenFiles) {
  const TestDirectory directory;
  expect_error(read_config(directory.path()), "config.json", "cannot open");
  for (const char* text : {"", "{", "[]", "null", "{\"a\": \x80}"}) {
    directory.write("config.json", text);
    expect_error(read_config(directory.path()), "config.json", "JSON");
  }
}

TEST(Config, ReadsTheDemoModel) {
  const auto config = read_config(KVQ_SOURCE_DIR "/models/demo-llama");
  ASSERT_TRUE(config) << config.error().message;
  EXPECT_EQ(config->layers, 8);
  EXPECT_EQ(config->head_dim, 64);
  EXPECT_EQ(config->stop_tokens, std::vector<int>{1});
}

// Every tensor that the table promises is in the checkpoint, with its shape, and no other.
void expect_tensors_of_the_table(const std::filesystem::path& directory) {
  SCOPED_TRACE(directory.string());
  const auto config = read_config(directory);
  ASSERT_TRUE(config) << config.error().message;
  const auto checkpoint = Checkpoint::open(directory);
  ASSERT_TRUE(checkpoint) << checkpoint.error().message;
  const ModuleNames& modules = info(config->architecture).modules;
  const int query_width = config->query_heads * config->head_dim;
  const int kv_width = config->kv_heads * config->head_dim;
  std::size_t expected = 0;
  const auto expect = [&](const std::string& tensor, const std::vector<std::int64_t>& shape) {
    const auto found = checkpoint->tensor(tensor, shape);
    EXPECT_TRUE(found) << found.error().message;
    ++expected;
  };
  const auto expect_projection = [&](std::string_view module, int layer, int out, int in,
                                     bool bias) {
    expect(weight_name(module, layer), {out, in});
    if (bias) expect(bias_name(module, layer), {out});
  };
  expect(weight_name(modules.embedding), {config->vocabulary, config->hidden});
  expect(weight_name(modules.final_norm), {config->hidden});
  if (!config->tied_embeddings) {
    expect(weight_name(modules.output), {config->vocabulary, config->hidden});
  }
  for (int layer = 0; layer < config->layers; ++layer) {
    expect(weight_name(modules.attention_norm, layer), {config->hidden});
    expect(weight_name(modules.mlp_norm, layer), {config->hidden});
    const bool bias = config->attention_bias;
    expect_projection(modules.query, layer, query_width, config->hidden, bias);
    expect_projection(modules.key, layer, kv_width, config->hidden, bias);
    expect_projection(modules.value, layer, kv_width, config->hidden, bias);
    expect_projection(modules.attention_output, layer, config->hidden, query_width, bias);
    if (config->qk_norm) {
      expect(weight_name(modules.query_norm, layer), {config->head_dim});
      expect(weight_name(modules.key_norm, layer), {config->head_dim});
    }
    expect_projection(modules.gate, layer, config->intermediate, config->hidden, config->mlp_bias);
    expect_projection(modules.up, layer, config->intermediate, config->hidden, config->mlp_bias);
    expect_projection(modules.down, layer, config->hidden, config->intermediate, config->mlp_bias);
  }
  EXPECT_EQ(checkpoint->tensors().size(), expected);
}

TEST(ArchitectureTable, NamesEveryTensorOfRealCheckpoints) {
  expect_tensors_of_the_table(KVQ_SOURCE_DIR "/models/demo-llama");
  for (const char* model : {"llama3.1-tiny", "llama3.2-tiny", "qwen3-tiny", "llama-bias-tiny"}) {
    expect_tensors_of_the_table(std::string(KVQ_SOURCE_DIR "/tests/fixtures/checkpoints/") + model);
  }
}

TEST(Config, ReadsWhatTransformersWrites) {
  const std::filesystem::path fixtures = KVQ_SOURCE_DIR "/tests/fixtures/checkpoints";
  const auto llama31 = read_config(fixtures / "llama3.1-tiny");
  ASSERT_TRUE(llama31) << llama31.error().message;
  EXPECT_TRUE(llama31->rope_scaling.enabled);
  EXPECT_EQ(llama31->rope_scaling.original_context, 32);
  EXPECT_EQ(llama31->rope_theta, 10000);
  EXPECT_EQ(llama31->stop_tokens, (std::vector<int>{1, 2}));
  const auto llama32 = read_config(fixtures / "llama3.2-tiny");
  ASSERT_TRUE(llama32) << llama32.error().message;
  EXPECT_TRUE(llama32->tied_embeddings);
  EXPECT_EQ(llama32->rope_scaling.factor, 32);
  EXPECT_EQ(llama32->rope_theta, 500000);
  const auto qwen3 = read_config(fixtures / "qwen3-tiny");
  ASSERT_TRUE(qwen3) << qwen3.error().message;
  EXPECT_TRUE(qwen3->qk_norm);
  EXPECT_EQ(qwen3->head_dim, 32);
  EXPECT_EQ(qwen3->rope_theta, 1e6);
  const auto biased = read_config(fixtures / "llama-bias-tiny");
  ASSERT_TRUE(biased) << biased.error().message;
  EXPECT_TRUE(biased->attention_bias);
  EXPECT_TRUE(biased->mlp_bias);
}

TEST(ArchitectureTable, NamesTensors) {
  for (const ArchitectureInfo& entry : architectures()) {
    EXPECT_EQ(&info(entry.architecture), &entry);
    EXPECT_EQ(weight_name(entry.modules.query, 12), "model.layers.12.self_attn.q_proj.weight");
    EXPECT_EQ(bias_name(entry.modules.down, 0), "model.layers.0.mlp.down_proj.bias");
    EXPECT_EQ(weight_name(entry.modules.output), "lm_head.weight");
  }
}

}  // namespace
}  // namespace kvq
