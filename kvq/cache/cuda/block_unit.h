// How blocks of a device's cache memory are numbered; for kernels too.
#pragma once

#include <cstdint>

namespace kvq::cuda {

// Block b starts so many bytes times b behind the start of the arena.
inline constexpr std::int64_t kBlockUnit = 128;

}  // namespace kvq::cuda
