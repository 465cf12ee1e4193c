// The int8 KV cache: a token's keys (and its values) of one kv head are int8 with one float scale.
//
// A block of one kv head is size * D numbers and, beside them, size scales. Keys lie [D/4][size][4], values [size/4][D][4]: what
// AMX and VNNI multiply in groups of four. Heads of whole groups of 64 are rotated (hadamard.h), keys and values by a 64th of the
// transform, queries and results by all of it: products stay what they are, and no sum overflows. A row depends on its own numbers
// alone, so a token has the same bits however its prompt was cut.
#pragma once
#include "int8_rows.h"

namespace millpond {
namespace MILLPOND_ISA {

// Bytes of one block of one kv head.
static inline int64_t int8_block_bytes(int64_t D, int64_t size) { return size * (D + int64_t(sizeof(float))); }

// Whether heads of this many dimensions are rotated.
static inline bool is_rotated_head(int64_t D) { return D % kHadamard == 0; }

// The codes of one token's keys or values, rotated if they are to be; returns their scale.
static inline float quantise_head(const float* x, int64_t D, int8_t* codes) {
  if (!is_rotated_head(D)) return quantise_row(x, D, codes);
  alignas(64) float rotated[256];
  return quantise_rotated(D, [&](int64_t d) { return vload(x + d) * vset(1.0f / kHadamard); }, rotated, codes);
}

// Writes one token. A token whose keys or values are not finite poisons both: whoever looks at it shall see NaN. Behind the last
// token nothing has to be cleared: every int8 is finite, and scales of hidden tokens are not used.
static inline void write_kv_int8(int8_t* k_block, int8_t* v_block, const float* k, const float* v, int64_t D, int64_t size, int64_t offset) {
  alignas(64) int8_t k_row[256], v_row[256];
  float k_scale = quantise_head(k, D, k_row), v_scale = quantise_head(v, D, v_row);
  if (k_scale != k_scale || v_scale != v_scale) k_scale = v_scale = __builtin_nanf("");
  for (int64_t d = 0; d < D; d += 4) memcpy(k_block + d * size + offset * 4, k_row + d, 4);
  // Nothing but the bytes of this token: other threads may be writing the other tokens of the four.
  for (int64_t d = 0; d < D; d += 16) vscatter_fours(v_block + offset / 4 * D * 4 + d * 4, offset % 4, v_row + d);
  ((float*)(k_block + size * D))[offset] = k_scale;
  ((float*)(v_block + size * D))[offset] = v_scale;
}

// Asks for the lines that the token's keys and values will be written to.
static inline void expect_kv_int8(const int8_t* k_block, const int8_t* v_block, int64_t D, int64_t size, int64_t offset) {
  for (int64_t d = 0; d < D; d += 4) __builtin_prefetch(k_block + d * size + offset * 4, 1);
  for (int64_t i = 0; i < D * 4; i += 64) __builtin_prefetch(v_block + offset / 4 * D * 4 + i, 1);
  __builtin_prefetch(k_block + size * D + offset * 4, 1);
  __builtin_prefetch(v_block + size * D + offset * 4, 1);
}

}  // namespace MILLPOND_ISA
}  // namespace millpond
