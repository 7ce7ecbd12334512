#include "kvq/base/cpu.h"

#include <unistd.h>
#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include <cstdlib>

namespace kvq {
namespace {

Isa detect() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  // Not every compiler's __builtin_cpu_supports() knows F16C.
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  const bool f16c = __get_cpuid(1, &eax, &ebx, &ecx, &edx) != 0 && (ecx & bit_F16C) != 0;
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && f16c;
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                      __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512vnni");
  if (avx2 && avx512) return Isa::kAvx512;
  if (avx2) return Isa::kAvx2;
#endif
  return Isa::kPortable;
}

}  // namespace

Isa host_isa() {
  static const Isa kHost = detect();
  return kHost;
}

Result<Isa> default_isa() {
  const char* forced = std::getenv("KVQ_ISA");
  if (forced == nullptr || *forced == '\0') return host_isa();
  auto isa = parse_isa(forced);
  if (!isa) return fail("KVQ_ISA: {}", isa.error().message);
  if (*isa > host_isa()) {
    return fail("KVQ_ISA: this machine cannot run {}; its best is {}", forced, name(host_isa()));
  }
  return isa;
}

std::vector<Isa> runnable_isas() {
  std::vector<Isa> result;
  for (Isa isa : {Isa::kPortable, Isa::kAvx2, Isa::kAvx512}) {
    if (isa <= host_isa()) result.push_back(isa);
  }
  return result;
}

std::string_view name(Isa isa) {
  switch (isa) {
    case Isa::kPortable:
      return "portable";
    case Isa::kAvx2:
      return "avx2";
    case Isa::kAvx512:
      return "avx512";
  }
  return "unknown";
}

Result<Isa> parse_isa(std::string_view text) {
  for (Isa isa : {Isa::kPortable, Isa::kAvx2, Isa::kAvx512}) {
    if (text == name(isa)) return isa;
  }
  return fail("unknown instruction set '{}', expected portable, avx2 or avx512", text);
}

std::size_t last_level_cache_bytes() {
  const long bytes = sysconf(_SC_LEVEL3_CACHE_SIZE);
  return bytes > 0 ? static_cast<std::size_t>(bytes) : std::size_t{32} << 20;
}

}  // namespace kvq
