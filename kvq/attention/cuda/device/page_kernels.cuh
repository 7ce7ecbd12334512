// What a kernel does with one page: for widths known when it is compiled (FixedPage) or any
// (SymmetricPage), with the parameters that most formats have; for everything else (AnyPage).
#pragma once

#include "kvq/attention/cuda/device/any_product.cuh"
#include "kvq/attention/cuda/device/grouped_product.cuh"
#include "kvq/attention/cuda/device/query.cuh"
#include "kvq/attention/cuda/device/softmax.cuh"

namespace kvq::cuda {

template <int kColumns>
__device__ __forceinline__ void add_sums(const BlockSum<kColumns>& from, BlockSum<kColumns>& to) {
#pragma unroll
  for (int j = 0; j < 4; ++j) {
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
#pragma unroll
      for (int e = 0; e < 4; ++e) to[j][c][e] += from[j][c][e];
    }
  }
}

// Sums of values to units of 1 and back.
template <int kBlocks, int kColumns>
__device__ __forceinline__ void values_to_plain(Bits bits, SoftmaxSum<kBlocks, kColumns>& sum) {
#pragma unroll
  for (int block = 0; block < kBlocks; ++block) {
    scale_units(bits, -1, 1.0F, sum.values[block]);
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
#pragma unroll
        for (int j = 0; j < 4; ++j) sum.values[block][j][c][e] += sum.constants[block][c][e & 1];
      }
      sum.constants[block][c][0] = sum.constants[block][c][1] = 0;
    }
  }
}
template <int kBlocks, int kColumns>
__device__ __forceinline__ void values_from_plain(Bits bits, SoftmaxSum<kBlocks, kColumns>& sum) {
#pragma unroll
  for (int block = 0; block < kBlocks; ++block) scale_units(bits, 1, 1.0F, sum.values[block]);
}

// Attends to a page whose kernel has scores() and add_values().
template <class Page>
struct TwoProducts {
  static constexpr bool kWholeBlocks = true;  // head_dim is a multiple of 64

  // settle() is called behind the first.
  template <int kBlocks, int kColumns, class Terms, class Settle>
  __device__ static __forceinline__ void attend(const DecodeParams& params, std::uint32_t page,
                                                std::uint32_t room, Lane lane,
                                                const Query<4 * kBlocks, kColumns>& query,
                                                const Terms& terms,
                                                SoftmaxSum<kBlocks, kColumns>& sum,
                                                const Settle& settle) {
    BlockSum<kColumns> scores = {};
    Page::scores(params, page, room, lane, query, terms, scores);
    settle();
    Operand<4, kColumns> weights;
    sum.weigh(scores, weights);
    Page::add_values(params, page, room, lane, weights, sum);
  }
};

// Where the sections of a page lie that has symmetric parameters for each token and 64 channels and
// head_dim = 64 * kBlocks (codec/page_format.h).
template <Bits kKey, Bits kValue, int kBlocks>
struct FixedSections {
  // Codes of 64 rows.
  static constexpr int code_bytes(Bits bits, int depth) {
    int width = 0;
    for (int last = levels(bits) - 1; last > 0; last /= 2) ++width;
    return bits == Bits::kTernary ? depth / 20 * 256 + depth / 4 % 5 * 64 : 8 * depth * width;
  }
  static constexpr int kKeyScales = code_bytes(kKey, 64 * kBlocks);
  static constexpr int kValues = kKeyScales + 128 * kBlocks;
  static constexpr int kValueBlock = code_bytes(kValue, kPageTokens);
  static constexpr int kValueScales = kValues + kBlocks * kValueBlock;
};

// Symmetric, token axis, groups of 64 channels.
template <Bits kKey, Bits kValue>
struct FixedPage : TwoProducts<FixedPage<kKey, kValue>> {
  // Shared memory of a warp for operands.
  template <int kSteps, int kColumns>
  static constexpr int kOperandBytes = 0;

  __device__ static constexpr Bits value_bits(const DecodeParams&) { return kValue; }

  template <int kSteps, int kColumns>
  struct QueryTerms {
    float bias[kSteps / 4][kColumns][2];
  };
  template <int kSteps, int kColumns>
  __device__ static __forceinline__ void prepare(const DecodeParams& params, std::uint32_t, Lane,
                                                 const Query<kSteps, kColumns>& query,
                                                 QueryTerms<kSteps, kColumns>& terms) {
    query_bias(query.operand, params.key.middle, terms.bias);
  }

  // Scores of the page's tokens in units of log2.
  template <int kSteps, int kColumns>
  __device__ static __forceinline__ void scores(const DecodeParams&, std::uint32_t page,
                                                std::uint32_t, Lane lane,
                                                const Query<kSteps, kColumns>& query,
                                                const QueryTerms<kSteps, kColumns>& terms,
                                                BlockSum<kColumns>& sum) {
    using Sections = FixedSections<kKey, kValue, kSteps / 4>;
    add_fixed_row_wise<kKey>(page, page + Sections::kKeyScales, lane, query.operand, terms.bias,
                             sum);
    scale_units(kKey, -1, query.factor, sum);
  }

  template <int kBlocks, int kColumns>
  __device__ static __forceinline__ void add_values(const DecodeParams&, std::uint32_t page,
                                                    std::uint32_t, Lane lane,
                                                    const Operand<4, kColumns>& weights,
                                                    SoftmaxSum<kBlocks, kColumns>& sum) {
    using Sections = FixedSections<kKey, kValue, kBlocks>;
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) {
      add_fixed_depth_wise<kValue, kBlocks>(
          page + Sections::kValues + block * Sections::kValueBlock,
          page + Sections::kValueScales + 64 * block, lane, weights, sum.values[block],
          sum.constants[block]);
    }
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
struct SymmetricPage : TwoProducts<SymmetricPage> {
  // Shared memory of a warp for operands.
  template <int kSteps, int kColumns>
  static constexpr int kOperandBytes = 0;

  __device__ static Bits value_bits(const DecodeParams& params) { return params.value.bits; }

  template <int kSteps, int kColumns>
  struct QueryTerms {
    float bias[kSteps / 4][kColumns][2];
  };
  template <int kSteps, int kColumns>
  __device__ static __forceinline__ void prepare(const DecodeParams& params, std::uint32_t, Lane,
                                                 const Query<kSteps, kColumns>& query,
                                                 QueryTerms<kSteps, kColumns>& terms) {
    query_bias(query.operand, params.key.middle, terms.bias);
  }

  // Scores of the page's tokens in units of log2.
  template <int kSteps, int kColumns>
  __device__ static __forceinline__ void scores(const DecodeParams& params, std::uint32_t page,
                                                std::uint32_t, Lane lane,
                                                const Query<kSteps, kColumns>& query,
                                                const QueryTerms<kSteps, kColumns>& terms,
                                                BlockSum<kColumns>& sum) {
    const std::uint32_t planes = page + params.key.planes;
    with_bits(params.key.bits, [&](auto bits) {
      constexpr Bits kBits = decltype(bits)::value;
      if constexpr (kBits == Bits::k16) {
        add_plain_product<kBits>(params.key, planes, lane, query.operand, sum);
      } else {
        add_fixed_row_wise<kBits>(planes, page + params.key.scales, lane, query.operand, terms.bias,
                                  sum);
      }
      scale_units(kBits, -1, query.factor, sum);
    });
  }

  template <int kBlocks, int kColumns>
  __device__ static __forceinline__ void add_values(const DecodeParams& params, std::uint32_t page,
                                                    std::uint32_t, Lane lane,
                                                    const Operand<4, kColumns>& weights,
                                                    SoftmaxSum<kBlocks, kColumns>& sum) {
    with_bits(params.value.bits, [&](auto bits) {
      constexpr Bits kBits = decltype(bits)::value;
#pragma unroll
      for (int block = 0; block < kBlocks; ++block) {
        const std::uint32_t planes = page + params.value.planes + block * params.value.block_bytes;
        if constexpr (kBits == Bits::k16) {
          add_plain_product<kBits>(params.value, planes, lane, weights, sum.values[block]);
        } else {
          add_fixed_depth_wise<kBits, kBlocks>(planes, page + params.value.scales + 64 * block,
                                               lane, weights, sum.values[block],
                                               sum.constants[block]);
        }
      }
    });
  }
};

// Groups of 32 and more, symmetric or affine; the widths are a switch once a page.
template <bool kKeyDepthWise, bool kValueDepthWise>
struct GroupedPage : TwoProducts<GroupedPage<kKeyDepthWise, kValueDepthWise>> {
  template <int kSteps, int kColumns>
  static constexpr int kOperandBytes = kSpreadBytes;

  __device__ static Bits value_bits(const DecodeParams& params) { return params.value.bits; }

  template <int kSteps, int kColumns>
  struct QueryTerms {
    PairTotals<kSteps, kColumns> totals;
  };
  template <int kSteps, int kColumns>
  __device__ static __forceinline__ void prepare(const DecodeParams&, std::uint32_t, Lane,
                                                 const Query<kSteps, kColumns>& query,
                                                 QueryTerms<kSteps, kColumns>& terms) {
    if constexpr (!kKeyDepthWise) total_steps<2>(query.operand, terms.totals);
  }

  // Scores of the page's tokens in units of log2.
  template <int kSteps, int kColumns>
  __device__ static __forceinline__ void scores(const DecodeParams& params, std::uint32_t page,
                                                std::uint32_t room, Lane lane,
                                                const Query<kSteps, kColumns>& query,
                                                const QueryTerms<kSteps, kColumns>& terms,
                                                BlockSum<kColumns>& sum) {
    const std::uint32_t planes = page + params.key.planes;
    const Parameters parameters = [&] {
      if constexpr (kKeyDepthWise) {
        return depth_wise_parameters<kSteps / 2>(params.key, page, room, lane);
      } else {
        return row_wise_parameters(params.key, page, room, params.key.depth_groups, lane);
      }
    }();
    with_bits(params.key.bits, [&](auto bits) {
      constexpr Bits kBits = decltype(bits)::value;
      if constexpr (kBits == Bits::k16) {
        add_plain_product<kBits>(params.key, planes, lane, query.operand, sum);
      } else if constexpr (kKeyDepthWise) {
        add_grouped_depth_wise<kBits>(params.key, parameters, planes, 0, lane, query.operand, sum);
      } else {
        add_grouped_row_wise<kBits>(params.key, parameters, planes, 0, lane, query.operand,
                                    terms.totals, sum);
      }
      scale_units(kBits, -1, query.factor, sum);
    });
  }

  template <int kBlocks, int kColumns>
  __device__ static __forceinline__ void add_values(const DecodeParams& params, std::uint32_t page,
                                                    std::uint32_t room, Lane lane,
                                                    const Operand<4, kColumns>& weights,
                                                    SoftmaxSum<kBlocks, kColumns>& sum) {
    PairTotals<4, kColumns> totals;
    const Parameters parameters = [&] {
      if constexpr (kValueDepthWise) {
        return depth_wise_parameters<2>(params.value, page, room, lane);
      } else {
        total_steps<2>(weights, totals);
        return row_wise_parameters(params.value, page, room, kBlocks * params.value.depth_groups,
                                   lane);
      }
    }();
    with_bits(params.value.bits, [&](auto bits) {
      constexpr Bits kBits = decltype(bits)::value;
#pragma unroll
      for (int block = 0; block < kBlocks; ++block) {
        const std::uint32_t planes = page + params.value.planes + block * params.value.block_bytes;
        if constexpr (kBits == Bits::k16) {
          add_plain_product<kBits>(params.value, planes, lane, weights, sum.values[block]);
        } else if constexpr (kValueDepthWise) {
          add_grouped_depth_wise<kBits>(params.value, parameters, planes, block * kPageTokens, lane,
                                        weights, sum.values[block]);
        } else {
          add_grouped_row_wise<kBits>(params.value, parameters, planes,
                                      block * params.value.depth_groups, lane, weights, totals,
                                      sum.values[block]);
        }
      }
    });
  }
};

// All else. Keys and blocks of values go through the same code, one after the other: a switch for
// each of them. Sums of values are in units of 1.
struct AnyPage {
  static constexpr bool kWholeBlocks = false;

  // The queries', then those of the weights.
  template <int kSteps, int kColumns>
  static constexpr int kOperandBytes = 256 * kColumns*(kSteps + 4);

  __device__ static constexpr Bits value_bits(const DecodeParams&) { return Bits::k16; }

  template <int kSteps, int kColumns>
  struct QueryTerms {};
  template <int kSteps, int kColumns>
  __device__ static __forceinline__ void prepare(const DecodeParams&, std::uint32_t operands,
                                                 Lane lane, const Query<kSteps, kColumns>& query,
                                                 QueryTerms<kSteps, kColumns>&) {
    __syncwarp();
    store_operand(query.operand, operands, lane);
  }

  template <int kBlocks, int kColumns, class Settle>
  __device__ static __forceinline__ void attend(const DecodeParams& params, std::uint32_t page,
                                                std::uint32_t operands, Lane lane,
                                                const Query<4 * kBlocks, kColumns>& query,
                                                const QueryTerms<4 * kBlocks, kColumns>&,
                                                SoftmaxSum<kBlocks, kColumns>& sum,
                                                const Settle& settle) {
    const std::uint32_t weight_operands = operands + 256 * kColumns * 4 * kBlocks;
#pragma unroll 1
    for (int block = -1; block * kPageTokens < params.head_dim; ++block) {
      const bool key = block < 0;
      const TensorLayout layout = key ? params.key : params.value;
      BlockSum<kColumns> product = {};
      with_bits(layout.bits, [&](auto bits) {
        constexpr Bits kBits = decltype(bits)::value;
        add_any_product<kBits>(layout, page, max(block, 0), lane, key ? operands : weight_operands,
                               product);
        scale_units(kBits, -1, key ? query.factor : 1.0F, product);
      });
      if (key) {
        Operand<4, kColumns> weights;
        sum.weigh(product, weights);
        store_operand(weights, weight_operands, lane);
        settle();
        continue;
      }
#pragma unroll
      for (int b = 0; b < kBlocks; ++b) {
        if (b == block) add_sums(product, sum.values[b]);
      }
    }
  }
};

}  // namespace kvq::cuda
