#include "kvq/base/checksum.h"

#include <xxhash.h>

namespace kvq {

std::uint64_t checksum(std::span<const std::byte> bytes) {
  return XXH3_64bits(bytes.data(), bytes.size());
}

}  // namespace kvq
