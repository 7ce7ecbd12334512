#include "kvq/plan/plan.h"

#include <algorithm>
#include <cmath>

#include "kvq/codec/page_format.h"

namespace kvq {
namespace {

constexpr int kMaxKvHeads = 4096;
constexpr std::size_t kIdentityDigits = 16;
// Of effective_bits: files are written by people too.
constexpr double kBitsTolerance = 1e-6;

bool is_identity(const std::string& text) {
  const auto is_digit = [](char c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'); };
  return text.empty() || (text.size() == kIdentityDigits && std::ranges::all_of(text, is_digit));
}

Status validate(const PlanModel& model) {
  if (!is_identity(model.identity)) {
    return fail("model: identity: expected {} hexadecimal digits, found '{}'", kIdentityDigits,
                model.identity);
  }
  if (model.layers < 1) return fail("model: layers: expected 1 or more, found {}", model.layers);
  if (model.kv_heads < 1 || model.kv_heads > kMaxKvHeads) {
    return fail("model: kv_heads: expected 1 to {}, found {}", kMaxKvHeads, model.kv_heads);
  }
  const auto format = PageFormat::create(LayerSpec{}, model.head_dim);
  if (!format) return fail("model: {}", format.error().message);
  return {};
}

}  // namespace

double effective_bits(const std::vector<LayerSpec>& layers, int head_dim) {
  double sum = 0;
  for (const LayerSpec& layer : layers) {
    sum += PageFormat::create(layer, head_dim).value().effective_bits();
  }
  return sum / static_cast<double>(layers.size());
}

Status validate(const Plan& plan) {
  KVQ_RETURN_IF_ERROR(validate(plan.model));
  if (plan.method.empty()) return fail("method: expected a name, found none");
  if (!std::isfinite(plan.budget) || plan.budget < 0) {
    return fail("budget: expected a positive number, found {}", plan.budget);
  }
  if (plan.sinks < 0) return fail("sinks: expected 0 or more, found {}", plan.sinks);
  if (plan.window < 0 || plan.window % kPageTokens != 0) {
    return fail("window: expected a multiple of {} tokens, found {}", kPageTokens, plan.window);
  }
  if (plan.layers.size() != static_cast<std::size_t>(plan.model.layers)) {
    return fail("layers: expected {} as the model has, found {}", plan.model.layers,
                plan.layers.size());
  }
  for (std::size_t layer = 0; layer < plan.layers.size(); ++layer) {
    const auto format = PageFormat::create(plan.layers[layer], plan.model.head_dim);
    if (!format) return fail("layers[{}]: {}", layer, format.error().message);
  }
  const double bits = effective_bits(plan.layers, plan.model.head_dim);
  if (!(std::abs(plan.effective_bits - bits) <= kBitsTolerance)) {
    return fail("effective_bits: expected {}, what the layers take, found {}", bits,
                plan.effective_bits);
  }
  return {};
}

Status check_model(const Plan& plan, const PlanModel& model, const std::filesystem::path& path) {
  struct Field {
    const char* name;
    int expected;
    int found;
  };
  for (const Field& field : {Field{"layers", model.layers, plan.model.layers},
                             Field{"kv_heads", model.kv_heads, plan.model.kv_heads},
                             Field{"head_dim", model.head_dim, plan.model.head_dim}}) {
    if (field.expected != field.found) {
      return fail("{}: model: {}: the plan is for another model: expected {}, found {}",
                  path.string(), field.name, field.expected, field.found);
    }
  }
  if (!plan.model.identity.empty() && plan.model.identity != model.identity) {
    return fail(
        "{}: model: identity: the plan is for another model of this shape: expected {}, found {}",
        path.string(), model.identity, plan.model.identity);
  }
  return {};
}

}  // namespace kvq
