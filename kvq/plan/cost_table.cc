#include "kvq/plan/cost_table.h"

#include <cmath>

#include "kvq/codec/page_format.h"

namespace kvq {

Result<std::int64_t> tensor_bytes(const TensorSpec& spec, bool is_key, int kv_heads, int head_dim) {
  const LayerSpec layer =
      is_key ? LayerSpec{.key = spec, .value = {}} : LayerSpec{.key = {}, .value = spec};
  KVQ_ASSIGN_OR_RETURN(const PageFormat format, PageFormat::create(layer, head_dim));
  const std::size_t bytes = is_key ? format.key.bytes : format.value.bytes;
  const std::size_t padded = (bytes + kPageAlignment - 1) / kPageAlignment * kPageAlignment;
  return kv_heads * static_cast<std::int64_t>(padded);
}

std::int64_t budget_bytes(double bits, int layers, int kv_heads, int head_dim) {
  const double numbers = 2.0 * layers * kv_heads * head_dim * kPageTokens;
  // A budget that is meant to be met exactly (2.1 bits) must not miss it by a rounding.
  return static_cast<std::int64_t>(std::floor(bits * numbers / 8 * (1 + 1e-12)));
}

std::vector<LayerSpec> chosen_layers(const CostTable& table, const std::vector<int>& choice) {
  const auto spec = [&](std::size_t tensor) {
    return table.tensors[tensor][static_cast<std::size_t>(choice[tensor])].spec;
  };
  std::vector<LayerSpec> layers;
  layers.reserve(table.tensors.size() / 2);
  for (std::size_t tensor = 0; tensor + 1 < table.tensors.size(); tensor += 2) {
    layers.push_back({spec(tensor), spec(tensor + 1)});
  }
  return layers;
}

std::int64_t chosen_bytes(const CostTable& table, const std::vector<int>& choice) {
  std::int64_t bytes = 0;
  for (std::size_t tensor = 0; tensor < table.tensors.size(); ++tensor) {
    bytes += table.tensors[tensor][static_cast<std::size_t>(choice[tensor])].bytes;
  }
  return bytes;
}

Status validate(const CostTable& table) {
  if (table.tensors.empty() || table.tensors.size() % 2 != 0) {
    return fail("cost table: expected keys and values of each layer, found {} tensors",
                table.tensors.size());
  }
  for (std::size_t tensor = 0; tensor < table.tensors.size(); ++tensor) {
    const char* name = tensor % 2 == 0 ? "keys" : "values";
    if (table.tensors[tensor].empty()) {
      return fail("cost table: {} of layer {}: expected candidates, found none", name, tensor / 2);
    }
    for (const Candidate& candidate : table.tensors[tensor]) {
      if (candidate.bytes < 1 || !std::isfinite(candidate.cost)) {
        return fail(
            "cost table: {} of layer {}, {}: expected bytes above 0 and a finite cost, found {} "
            "bytes "
            "and cost {}",
            name, tensor / 2, to_string(candidate.spec, tensor % 2 == 0), candidate.bytes,
            candidate.cost);
      }
    }
  }
  return {};
}

}  // namespace kvq
