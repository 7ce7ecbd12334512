#include "kvq/runtime/rotary.h"

#include <cmath>
#include <numbers>

namespace kvq {
namespace {

// Llama 3.1: frequencies whose wavelength exceeds the original context are divided by `factor`,
// short ones stay, those between are blended.
float scaled(float frequency, const Llama3RopeScaling& scaling) {
  const auto context = static_cast<float>(scaling.original_context);
  const auto factor = static_cast<float>(scaling.factor);
  const auto low = static_cast<float>(scaling.low_frequency_factor);
  const auto high = static_cast<float>(scaling.high_frequency_factor);
  const float wavelength = 2 * std::numbers::pi_v<float> / frequency;
  if (wavelength > context / low) return frequency / factor;
  if (wavelength < context / high) return frequency;
  const float smooth = (context / wavelength - low) / (high - low);
  return (1 - smooth) * frequency / factor + smooth * frequency;
}

}  // namespace

std::vector<float> rotary_frequencies(const ModelConfig& config) {
  std::vector<float> frequencies;
  for (int i = 0; i < config.head_dim; i += 2) {
    const float exponent = static_cast<float>(i) / static_cast<float>(config.head_dim);
    const float frequency = 1 / std::pow(static_cast<float>(config.rope_theta), exponent);
    frequencies.push_back(config.rope_scaling.enabled ? scaled(frequency, config.rope_scaling)
                                                      : frequency);
  }
  return frequencies;
}

}  // namespace kvq
