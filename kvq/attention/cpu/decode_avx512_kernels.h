// What the files of the AVX-512 decode kernels share.
#pragma once

#include "kvq/attention/cpu/decode_kernels.h"

namespace kvq {

KeyKernel avx512_key_kernel(const TensorFormat& format, int terms);
ValueKernel avx512_value_kernel(const TensorFormat& format, int terms);
KeyKernel avx512_half_keys();
ValueKernel avx512_half_values();
void avx512_quantize_query(const DecodePlan& plan, DecodeQuery& query);
void avx512_softmax(int heads, int output_stride, int center_count, DecodeScratch& scratch);
void avx512_exact_keys(const DecodeQuery& query, const Half* rows, int count, int heads,
                       int head_dim, DecodeScratch& scratch);
void avx512_exact_values(const Half* rows, int count, int heads, int head_dim, int output_stride,
                         DecodeScratch& scratch);

}  // namespace kvq
