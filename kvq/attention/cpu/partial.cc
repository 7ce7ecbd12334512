#include "kvq/attention/cpu/partial.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "kvq/codec/hadamard.h"
#include "kvq/codec/page_format.h"

namespace kvq {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// Adds the row of every partial, times 2^(its maximum - maximum) * factor, to output [head_dim].
void add_rows(std::span<const Partial> partials, int row, float maximum, float factor, int head_dim,
              float* output) {
  for (const Partial& partial : partials) {
    const float weight = factor * std::exp2(partial.maximum[row] - maximum);
    const float* source = partial.output + std::size_t(row) * padded_channels(head_dim);
    for (int c = 0; c < head_dim; ++c) output[c] += weight * source[c];
  }
}

float largest(std::span<const Partial> partials, int row) {
  float maximum = -kInfinity;
  for (const Partial& partial : partials) maximum = std::max(maximum, partial.maximum[row]);
  return maximum;
}

float total(std::span<const Partial> partials, int row, float maximum) {
  float sum = 0;
  for (const Partial& partial : partials) {
    sum += std::exp2(partial.maximum[row] - maximum) * partial.sum[row];
  }
  return sum;
}

}  // namespace

std::size_t Partial::lines(int rows, int head_dim) {
  return 2 * lines_of(rows) + lines_of(std::size_t(rows) * padded_channels(head_dim));
}

Partial Partial::make(FloatLine* memory, int rows) {
  const std::size_t state = lines_of(rows);
  return {memory->values, memory[state].values, memory[2 * state].values};
}

void Partial::clear(int rows, int head_dim) const {
  std::fill_n(maximum, lines_of(rows) * 16, -kInfinity);
  std::fill_n(sum, rows, 0.0F);
  std::fill_n(output, std::size_t(rows) * padded_channels(head_dim), 0.0F);
}

void write_output(std::span<const Partial> plain, std::span<const Partial> rotated, int row,
                  int count, int head_dim, Isa isa, float* output) {
  std::fill_n(output, std::size_t(count) * head_dim, 0.0F);
  const auto add = [&](std::span<const Partial> partials) {
    for (int i = 0; i < count; ++i) {
      const float maximum = std::max(largest(plain, row + i), largest(rotated, row + i));
      const float sum = total(rotated, row + i, maximum) + total(plain, row + i, maximum);
      add_rows(partials, row + i, maximum, 1 / sum, head_dim, output + i * head_dim);
    }
  };
  if (!rotated.empty()) {
    add(rotated);
    hadamard_rows(output, count, head_dim, isa);
  }
  add(plain);
}

}  // namespace kvq
