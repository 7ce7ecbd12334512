// Kinds of numbers that kernels read and write; for kernels too.
#pragma once

#include <cstdint>

namespace kvq::cuda {

enum class NumberType : std::uint8_t { kFloat32, kFloat16, kBFloat16 };

}  // namespace kvq::cuda
