// What a kernel does with one page, for widths known when it is compiled (FixedPage) or not
// (AnyPage: a switch in every step).
#pragma once

#include "kvq/attention/cuda/device/any_product.cuh"
#include "kvq/attention/cuda/device/query.cuh"
#include "kvq/attention/cuda/device/softmax.cuh"

namespace kvq::cuda {

// Codes' sums to units of 1, times `factor`.
template <Bits kBits, int kColumns>
__device__ __forceinline__ void multiply_units(BlockSum<kColumns>& sum, float factor) {
  using C = Codes<kBits>;
#pragma unroll
  for (int j = 0; j < 4; ++j) {
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        sum[j][c][e] *= factor * power_of_two(-C::kUnitPower - C::power(j, e >> 1));
      }
    }
  }
}
template <Bits kBits, int kColumns>
__device__ __forceinline__ void divide_units(BlockSum<kColumns>& sum) {
  using C = Codes<kBits>;
#pragma unroll
  for (int j = 0; j < 4; ++j) {
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        sum[j][c][e] *= power_of_two(C::kUnitPower + C::power(j, e >> 1));
      }
    }
  }
}

// Symmetric, token axis, groups of 64 channels; or 16 bits.
template <Bits kKey, Bits kValue>
struct FixedPage {
  static constexpr bool kFewRegisters = true;

  template <int kSteps, int kColumns>
  struct QueryTerms {
    float bias[kSteps / 4][kColumns][2];
  };
  template <int kSteps, int kColumns>
  __device__ static __forceinline__ void prepare(const DecodeParams& params,
                                                 const Query<kSteps, kColumns>& query,
                                                 QueryTerms<kSteps, kColumns>& terms) {
    query_bias(query.operand, params.key.middle, terms.bias);
  }

  // Scores of the page's tokens in units of log2.
  template <int kSteps, int kColumns>
  __device__ static __forceinline__ void scores(const DecodeParams& params, std::uint32_t page,
                                                Lane lane, const Query<kSteps, kColumns>& query,
                                                const QueryTerms<kSteps, kColumns>& terms,
                                                BlockSum<kColumns>& sum) {
    const std::uint32_t planes = page + params.key.planes;
    if constexpr (kKey == Bits::k16) {
      add_plain_product<kKey>(params.key, planes, lane, query.operand, sum);
    } else {
      add_fixed_row_wise<kKey>(params.key, planes, page + params.key.scales, lane, query.operand,
                               terms.bias, sum);
    }
    multiply_units<kKey>(sum, query.factor);
  }

  template <int kBlocks, int kColumns>
  __device__ static __forceinline__ void add_values(const DecodeParams& params, std::uint32_t page,
                                                    Lane lane, const Operand<4, kColumns>& weights,
                                                    BlockSum<kColumns> (&values)[kBlocks]) {
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) {
      const std::uint32_t planes = page + params.value.planes + block * params.value.block_bytes;
      if constexpr (kValue == Bits::k16) {
        add_plain_product<kValue>(params.value, planes, lane, weights, values[block]);
      } else {
        add_fixed_depth_wise<kValue>(params.value, planes, page + params.value.scales + 64 * block,
                                     lane, weights, values[block]);
      }
    }
  }

  // Sums of values to units of 1 and back.
  template <int kBlocks, int kColumns>
  __device__ static __forceinline__ void to_plain(const DecodeParams&,
                                                  BlockSum<kColumns> (&values)[kBlocks]) {
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) multiply_units<kValue>(values[block], 1.0F);
  }
  template <int kBlocks, int kColumns>
  __device__ static __forceinline__ void from_plain(const DecodeParams&,
                                                    BlockSum<kColumns> (&values)[kBlocks]) {
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) divide_units<kValue>(values[block]);
  }
};

// Calls use(BitsConstant<bits>{}).
template <Bits kBits>
struct BitsConstant {
  static constexpr Bits value = kBits;
};
template <class Use>
__device__ __forceinline__ void with_bits(Bits bits, const Use& use) {
  switch (bits) {
    case Bits::k1:
      return use(BitsConstant<Bits::k1>{});
    case Bits::kTernary:
      return use(BitsConstant<Bits::kTernary>{});
    case Bits::k2:
      return use(BitsConstant<Bits::k2>{});
    case Bits::k3:
      return use(BitsConstant<Bits::k3>{});
    case Bits::k4:
      return use(BitsConstant<Bits::k4>{});
    case Bits::k5:
      return use(BitsConstant<Bits::k5>{});
    case Bits::k6:
      return use(BitsConstant<Bits::k6>{});
    case Bits::k8:
      return use(BitsConstant<Bits::k8>{});
    case Bits::k16:
      return use(BitsConstant<Bits::k16>{});
  }
}

// Symmetric parameters for each token and 64 channels, or 16 bits; the widths are a switch once a
// page.
struct SymmetricPage {
  static constexpr bool kFewRegisters = true;

  template <int kSteps, int kColumns>
  struct QueryTerms {
    float bias[kSteps / 4][kColumns][2];
  };
  template <int kSteps, int kColumns>
  __device__ static __forceinline__ void prepare(const DecodeParams& params,
                                                 const Query<kSteps, kColumns>& query,
                                                 QueryTerms<kSteps, kColumns>& terms) {
    query_bias(query.operand, params.key.middle, terms.bias);
  }

  // Scores of the page's tokens in units of log2.
  template <int kSteps, int kColumns>
  __device__ static __forceinline__ void scores(const DecodeParams& params, std::uint32_t page,
                                                Lane lane, const Query<kSteps, kColumns>& query,
                                                const QueryTerms<kSteps, kColumns>& terms,
                                                BlockSum<kColumns>& sum) {
    const std::uint32_t planes = page + params.key.planes;
    with_bits(params.key.bits, [&](auto bits) {
      constexpr Bits kBits = decltype(bits)::value;
      if constexpr (kBits == Bits::k16) {
        add_plain_product<kBits>(params.key, planes, lane, query.operand, sum);
      } else {
        add_fixed_row_wise<kBits>(params.key, planes, page + params.key.scales, lane,
                                  query.operand, terms.bias, sum);
      }
      multiply_units<kBits>(sum, query.factor);
    });
  }

  template <int kBlocks, int kColumns>
  __device__ static __forceinline__ void add_values(const DecodeParams& params, std::uint32_t page,
                                                    Lane lane, const Operand<4, kColumns>& weights,
                                                    BlockSum<kColumns> (&values)[kBlocks]) {
    with_bits(params.value.bits, [&](auto bits) {
      constexpr Bits kBits = decltype(bits)::value;
#pragma unroll
      for (int block = 0; block < kBlocks; ++block) {
        const std::uint32_t planes = page + params.value.planes + block * params.value.block_bytes;
        if constexpr (kBits == Bits::k16) {
          add_plain_product<kBits>(params.value, planes, lane, weights, values[block]);
        } else {
          add_fixed_depth_wise<kBits>(params.value, planes,
                                      page + params.value.scales + 64 * block, lane, weights,
                                      values[block]);
        }
      }
    });
  }

  // Sums of values to units of 1 and back.
  template <int kBlocks, int kColumns>
  __device__ static __forceinline__ void to_plain(const DecodeParams& params,
                                                  BlockSum<kColumns> (&values)[kBlocks]) {
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) {
      scale_any_units(params.value.bits, -1, 1.0F, values[block]);
    }
  }
  template <int kBlocks, int kColumns>
  __device__ static __forceinline__ void from_plain(const DecodeParams& params,
                                                    BlockSum<kColumns> (&values)[kBlocks]) {
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) {
      scale_any_units(params.value.bits, 1, 1.0F, values[block]);
    }
  }
};

struct AnyPage {
  static constexpr bool kFewRegisters = false;

  template <int kSteps, int kColumns>
  struct QueryTerms {};
  template <int kSteps, int kColumns>
  __device__ static __forceinline__ void prepare(const DecodeParams&,
                                                 const Query<kSteps, kColumns>&,
                                                 QueryTerms<kSteps, kColumns>&) {}

  template <int kSteps, int kColumns>
  __device__ static __forceinline__ void scores(const DecodeParams& params, std::uint32_t page,
                                                Lane lane, const Query<kSteps, kColumns>& query,
                                                const QueryTerms<kSteps, kColumns>&,
                                                BlockSum<kColumns>& sum) {
    add_any_product(params.key, page, 0, lane, query.operand, sum);
    scale_any_units(params.key.bits, -1, query.factor, sum);
  }

  template <int kBlocks, int kColumns>
  __device__ static __forceinline__ void add_values(const DecodeParams& params, std::uint32_t page,
                                                    Lane lane, const Operand<4, kColumns>& weights,
                                                    BlockSum<kColumns> (&values)[kBlocks]) {
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) {
      if (block * kPageTokens >= params.head_dim) break;
      add_any_product(params.value, page, block, lane, weights, values[block]);
    }
  }

  template <int kBlocks, int kColumns>
  __device__ static __forceinline__ void to_plain(const DecodeParams& params,
                                                  BlockSum<kColumns> (&values)[kBlocks]) {
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) {
      scale_any_units(params.value.bits, -1, 1.0F, values[block]);
    }
  }
  template <int kBlocks, int kColumns>
  __device__ static __forceinline__ void from_plain(const DecodeParams& params,
                                                    BlockSum<kColumns> (&values)[kBlocks]) {
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) {
      scale_any_units(params.value.bits, 1, 1.0F, values[block]);
    }
  }
};

}  // namespace kvq::cuda
