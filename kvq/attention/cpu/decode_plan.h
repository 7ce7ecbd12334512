// The tables by which decode kernels read a format's parameters.
#pragma once

#include "kvq/attention/cpu/decode_kernels.h"
#include "kvq/base/cpu.h"

namespace kvq {

// The kernels of an instruction set; null if it has none.
const DecodeKernels* decode_kernels(Isa isa);

// False if a half has no kernel: then `plan` is not to be used.
bool make_decode_plan(const DecodeKernels& kernels, const PageFormat& format, int heads,
                      bool two_query_terms, DecodePlan& plan);

}  // namespace kvq
