#include "isa.h"

#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace millpond {

static bool amx_allowed() {
  constexpr long kArchReqXcompPerm = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kArchReqXcompPerm, kTileData) == 0;
}

Isa best_isa() {
  unsigned a, b, c, d;
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") || !__builtin_cpu_supports("f16c")) return kNone;
  if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") || !__builtin_cpu_supports("avx512vl") ||
      !__builtin_cpu_supports("avx512dq"))
    return kAvx2;
  if (!__get_cpuid_count(7, 1, &a, &b, &c, &d) || !(a & (1u << 5)) || !__builtin_cpu_supports("avx512vnni")) return kAvx512;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return kAvx512Bf16;
  const bool amx = (d & (1u << 24)) && (d & (1u << 22)) && (d & (1u << 25));  // tile, bf16, int8
  return amx && amx_allowed() ? kAmx : kAvx512Bf16;
}

int64_t cache_bytes() {
  constexpr long kLeast = 512 << 10, kMost = 2 << 20;
  const long told = sysconf(_SC_LEVEL2_CACHE_SIZE);
  return told <= 0 ? 1 << 20 : told < kLeast ? kLeast : told > kMost ? kMost : told;
}

}  // namespace millpond
