// What the files of the AVX2 decode kernels share.
#pragma once

#include "kvq/attention/cpu/decode_kernels.h"

namespace kvq {

KeyKernel avx2_key_kernel(const TensorFormat& format, int terms);
ValueKernel avx2_value_kernel(const TensorFormat& format, int terms);
KeyKernel avx2_half_keys();
ValueKernel avx2_half_values();
void avx2_quantize_query(const DecodePlan& plan, DecodeQuery& query);
void avx2_softmax(int heads, int output_stride, int center_count, DecodeScratch& scratch);
void avx2_exact_keys(const DecodeQuery& query, const Half* rows, int count, int heads, int head_dim,
                     DecodeScratch& scratch);
void avx2_exact_values(const Half* rows, int count, int heads, int head_dim, int output_stride,
                       DecodeScratch& scratch);

}  // namespace kvq
