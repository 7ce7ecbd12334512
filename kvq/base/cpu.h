// Which instruction set the kernels use, decided at run time.
#pragma once

#include <cstddef>
#include <string_view>
#include <vector>

#include "kvq/base/status.h"

namespace kvq {

// In rising order: a machine that has one has all before it.
enum class Isa {
  kPortable,  // plain C++
  kAvx2,      // AVX2, FMA, F16C
  kAvx512,    // AVX-512 F, BW, DQ, VL, VBMI and VNNI (Ice Lake, Zen 4 and later)
};

// What this machine has. Constant for the life of the process.
Isa host_isa();

// What kernels use where the caller names none: the host's best, or what the environment variable
// KVQ_ISA names (portable, avx2, avx512). An unknown name, or one the machine lacks, is an error.
Result<Isa> default_isa();

// Every instruction set that this machine can run, slowest first. Tests walk over it.
std::vector<Isa> runnable_isas();

std::string_view name(Isa isa);
Result<Isa> parse_isa(std::string_view text);

// Bytes of the last-level cache, or 32 MiB where the system does not say.
std::size_t last_level_cache_bytes();

}  // namespace kvq
