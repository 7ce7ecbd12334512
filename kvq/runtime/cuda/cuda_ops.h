// The forward pass's operations on a CUDA device.
#pragma once

#include <memory>

#include "kvq/cache/cuda/device.h"
#include "kvq/runtime/ops.h"

namespace kvq::cuda {

// How products take their inputs.
enum class InputTerms : std::uint8_t {
  kFloat32,  // weights and inputs are float32
  kOne,      // bf16 weights, inputs rounded to bf16
  kTwo,      // bf16 weights, inputs in two bf16 terms: to 16 significant bits
};

// All work goes to the device's stream. Tensors without data are filled with random numbers.
Result<std::unique_ptr<Ops>> create_cuda_ops(std::shared_ptr<Device> device, InputTerms terms);

}  // namespace kvq::cuda
