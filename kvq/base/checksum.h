// Content checksums.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace kvq {

// XXH3, 64 bits: detects accidents, not attacks.
std::uint64_t checksum(std::span<const std::byte> bytes);

}  // namespace kvq
