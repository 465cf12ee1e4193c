// What this processor and this kernel have.
#pragma once
#include <cstdint>

namespace millpond {
enum Isa : int { kNone = -1, kAvx2 = 0, kAvx512 = 1, kAvx512Bf16 = 2, kAmx = 3 };
// Asks Linux for the AMX tile state the first time; false when refused or absent.
Isa best_isa();
// Bytes of a core's second-level cache, from 512 KiB to 2 MiB; 1 MiB where nobody says.
int64_t cache_bytes();
}  // namespace millpond
