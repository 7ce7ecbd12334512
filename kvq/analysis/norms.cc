#include "kvq/analysis/norms.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>

#include "kvq/analysis/spectral_norm.h"
#include "kvq/model/identity.h"
#include "kvq/model/projection.h"

namespace kvq {
namespace {

// In double precision: squares of float32 numbers, and any sum of them, stay far inside its range.
double sum_of_squares(const float* values, std::size_t count) {
  constexpr std::size_t kLanes = 8;  // independent sums: additions wait for nothing
  std::array<double, kLanes> sums{};
  std::size_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    for (std::size_t lane = 0; lane < kLanes; ++lane) {
      const double value = values[i + lane];
      sums[lane] += value * value;
    }
  }
  for (; i < count; ++i) sums[0] += static_cast<double>(values[i]) * values[i];
  return std::accumulate(sums.begin(), sums.end(), 0.0);
}

struct TensorNorms {
  double whole = 0;
  std::vector<double> heads;
};

class Measurement {
 public:
  Measurement(const ModelConfig& config, const Checkpoint& checkpoint, Norm norm)
      : config_(config), checkpoint_(checkpoint), norm_(norm) {}

  Result<TensorNorms> measure(int layer, bool is_key) const {
    KVQ_ASSIGN_OR_RETURN(const TensorRef weight,
                         (is_key ? key_projection : value_projection)(config_, checkpoint_, layer));
    const std::string where =
        fmt::format("{}: {} projection of layer {}", checkpoint_.directory().string(),
                    is_key ? "key" : "value", layer);
    auto norms = norm_ == Norm::kFrobenius ? frobenius(weight, where) : spectral(weight, where);
    if (norms && norms->whole == 0) {
      return fail("{}: expected weights, found zeros only: it has no norm to plan by", where);
    }
    return norms;
  }

 private:
  std::size_t head_elements() const {
    return static_cast<std::size_t>(config_.head_dim) * static_cast<std::size_t>(config_.hidden);
  }

  Status check_finite(double squares, const float* values, int first_row,
                      const std::string& where) const {
    if (std::isfinite(squares)) return {};
    const float* bad = std::find_if_not(values, values + head_elements(),
                                        [](float x) { return std::isfinite(x); });
    const auto index = static_cast<int>(bad - values);
    return fail("{}: row {}, column {}: expected a finite number, found {}", where,
                first_row + index / config_.hidden, index % config_.hidden, *bad);
  }

  // The rows of one kv head at a time.
  Result<TensorNorms> frobenius(const TensorRef& weight, const std::string& where) const {
    TensorNorms norms;
    TensorRef head = weight;
    head.shape[0] = config_.head_dim;
    std::vector<float> values(head_elements());
    double sum = 0;
    for (int i = 0; i < config_.kv_heads; ++i) {
      read_floats(head, values.data());
      head.data += values.size() * static_cast<std::size_t>(bytes_of(head.type));
      const double squares = sum_of_squares(values.data(), values.size());
      KVQ_RETURN_IF_ERROR(check_finite(squares, values.data(), i * config_.head_dim, where));
      norms.heads.push_back(std::sqrt(squares));
      sum += squares;
    }
    norms.whole = std::sqrt(sum);
    return norms;
  }

  Result<TensorNorms> spectral(const TensorRef& weight, const std::string& where) const {
    TensorNorms norms;
    std::vector<float> values(static_cast<std::size_t>(weight.elements()));
    read_floats(weight, values.data());
    for (int i = 0; i < config_.kv_heads; ++i) {
      const float* head = values.data() + static_cast<std::size_t>(i) * head_elements();
      KVQ_RETURN_IF_ERROR(
          check_finite(sum_of_squares(head, head_elements()), head, i * config_.head_dim, where));
      norms.heads.push_back(spectral_norm(head, config_.head_dim, config_.hidden));
    }
    norms.whole =
        config_.kv_heads == 1
            ? norms.heads[0]
            : spectral_norm(values.data(), config_.kv_heads * config_.head_dim, config_.hidden);
    return norms;
  }

  const ModelConfig& config_;
  const Checkpoint& checkpoint_;
  Norm norm_;
};

}  // namespace

Result<NormTable> measure_norms(const ModelConfig& config, const Checkpoint& checkpoint, Norm norm,
                                ThreadPool& threads) {
  NormTable table;
  table.norm = norm == Norm::kFrobenius ? "frobenius" : "spectral";
  table.model = {.identity = "",
                 .layers = config.layers,
                 .kv_heads = config.kv_heads,
                 .head_dim = config.head_dim};
  KVQ_ASSIGN_OR_RETURN(table.model.identity, model_identity(config, checkpoint));

  const Measurement measurement(config, checkpoint, norm);
  std::vector<Result<TensorNorms>> found(static_cast<std::size_t>(2 * config.layers));
  threads.run(2 * config.layers, [&](int tensor, int) {
    found[static_cast<std::size_t>(tensor)] = measurement.measure(tensor / 2, tensor % 2 == 0);
  });
  for (std::size_t tensor = 0; tensor < found.size(); ++tensor) {
    KVQ_ASSIGN_OR_RETURN(TensorNorms norms, std::move(found[tensor]));
    const bool is_key = tensor % 2 == 0;
    (is_key ? table.keys : table.values).push_back(norms.whole);
    (is_key ? table.key_heads : table.value_heads).push_back(std::move(norms.heads));
  }
  return table;
}

}  // namespace kvq
