// One instruction set's kernels as a table. Compiled once per set with MILLPOND_ISA and MILLPOND_ISA_LEVEL (setup.py).
#include "attention.h"
#include "elementwise.h"
#include "linear.h"

namespace millpond {
namespace MILLPOND_ISA {

// Denormal numbers count as zero in a step, as the matrix units have it anyway: elsewhere each would cost a hundred cycles.
static uint32_t thread_begin() {
  const uint32_t modes = _mm_getcsr();
  _mm_setcsr(modes | 0x8040);
#if MILLPOND_AMX
  load_tile_config();
#endif
  return modes;
}
static void thread_end(uint32_t modes) {
#if MILLPOND_AMX
  _tile_release();
#endif
  _mm_setcsr(modes);
}

static int64_t read_sum(const void* data, int64_t bytes) {
  const float* p = (const float*)data;
  v16 a = vset(0), b = vset(0), c = vset(0), d = vset(0);
  for (int64_t i = 0; i + 64 <= bytes / 4; i += 64) {
    a = vmax(a, vload(p + i));
    b = vmax(b, vload(p + i + 16));
    c = vmax(c, vload(p + i + 32));
    d = vmax(d, vload(p + i + 48));
  }
  return vhmax(vmax(vmax(a, b), vmax(c, d))) > 1e30f;
}

static const KernelTable kTable = {{run_embed, run_norm, run_linear, run_rope_kv, run_attention, run_gather}, run_quantise, thread_begin, thread_end, read_sum};

}  // namespace MILLPOND_ISA
}  // namespace millpond

#define MILLPOND_JOIN2(a, b) a##b
#define MILLPOND_JOIN(a, b) MILLPOND_JOIN2(a, b)
extern "C" const millpond::KernelTable* MILLPOND_JOIN(millpond_kernels_, MILLPOND_ISA)() { return &millpond::MILLPOND_ISA::kTable; }
