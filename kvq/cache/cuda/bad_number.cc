#include "kvq/cache/cuda/bad_number.h"

#include <fmt/format.h>

#include "kvq/base/half.h"

namespace kvq::cuda {

BadNumberPlace describe(BadNumber number) {
  const auto bits = [&](int first, int count) {
    return static_cast<int>(number >> first & ((1ULL << count) - 1));
  };
  const char* const kinds[] = {"nan", "inf", "-inf", "above 65504", "below -65504"};
  return {bits(44, 12), bits(24, 20), bits(11, 12),
          fmt::format("{} channel {} is {}, expected a finite number within +-{}",
                      bits(23, 1) != 0 ? "value" : "key", bits(3, 8), kinds[bits(0, 3)], kHalfMax)};
}

}  // namespace kvq::cuda
