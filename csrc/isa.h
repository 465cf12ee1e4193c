// Which instruction sets this processor and this kernel allow.
#pragma once
namespace millpond {
enum Isa : int { kNone = -1, kAvx2 = 0, kAvx512 = 1, kAvx512Bf16 = 2, kAmx = 3 };
// Asks Linux for the AMX tile state the first time; false when refused or absent.
Isa best_isa();
}  // namespace millpond
