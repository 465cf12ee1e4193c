// The int8 KV cache: a token's keys (and its values) of one kv head are int8 with one float scale.
//
// A block of one kv head is size * D numbers and, beside them, size scales. Keys lie [D/2][size/16][2][16], values
// [size/2][D/16][2][16]: the pairs of the bf16 cache, but sixteen firsts before their sixteen seconds, so that widening needs no
// shuffle. Kernels widen 32 tokens at a time into scratch in the layout they know, which is exact: bf16 holds every whole number
// up to 256. A row depends on its own numbers alone, so a token has the same bits however its prompt was cut.
#pragma once
#include "simd.h"

namespace millpond {
namespace MILLPOND_ISA {

constexpr float kSmallestRow = 1e-30f;  // rows whose largest number is below it count as zero: 127 / largest stays finite

// Bytes of one block of one kv head.
static inline int64_t int8_block_bytes(int64_t D, int64_t size) { return size * (D + int64_t(sizeof(float))); }

// Sixteen whole numbers from -128 to 127.
static inline void store_codes(int8_t* p, v16 x) {
#if MILLPOND_AVX512
  _mm_storeu_si128((__m128i*)p, _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(x.a)));
#else
  const __m256i words = _mm256_packs_epi32(_mm256_cvtps_epi32(x.a), _mm256_cvtps_epi32(x.b));  // 0-3 8-11 4-7 12-15
  const __m256i sorted = _mm256_permute4x64_epi64(words, 0xd8);
  _mm_storeu_si128((__m128i*)p, _mm_packs_epi16(_mm256_castsi256_si128(sorted), _mm256_extracti128_si256(sorted, 1)));
#endif
}

// codes = round(x / scale) with the scale that makes the largest 127. A row that is not finite has the scale NaN.
static inline float quantise_row(const float* x, int64_t D, int8_t* codes) {
  v16 top = vset(0.0f), poison = vset(0.0f);
  for (int64_t i = 0; i < D; i += 16) {
    const v16 a = vload(x + i);
    top = vmax(top, vmax(a, vset(0.0f) - a));
    poison = vfma(a, vset(0.0f), poison);
  }
  const float largest = vhmax(top);
  const bool is_finite = vsum(poison) == 0.0f;
  if (!is_finite || largest < kSmallestRow) {
    memset(codes, 0, D);
    return is_finite ? 0.0f : __builtin_nanf("");
  }
  const v16 inverse = vset(127.0f / largest);
  for (int64_t i = 0; i < D; i += 16) store_codes(codes + i, vround(vload(x + i) * inverse));
  return largest / 127.0f;
}

// Writes one token. A token whose keys or values are not finite poisons both: whoever looks at it shall see NaN. Behind the last
// token nothing has to be cleared: every int8 is finite, and scales of hidden tokens are not used.
static inline void write_kv_int8(int8_t* k_block, int8_t* v_block, const float* k, const float* v, int64_t D, int64_t size, int64_t offset) {
  alignas(64) int8_t k_row[256], v_row[256];
  float k_scale = quantise_row(k, D, k_row), v_scale = quantise_row(v, D, v_row);
  if (k_scale != k_scale || v_scale != v_scale) k_scale = v_scale = __builtin_nanf("");
  int8_t* k_out = k_block + offset / 16 * 32 + offset % 16;
  for (int64_t d = 0; d < D; d += 2, k_out += size * 2) k_out[0] = k_row[d], k_out[16] = k_row[d + 1];
  int8_t* v_out = v_block + offset / 2 * D * 2 + offset % 2 * 16;
  for (int64_t d = 0; d < D; d += 16, v_out += 32) memcpy(v_out, v_row + d, 16);
  ((float*)(k_block + size * D))[offset] = k_scale;
  ((float*)(v_block + size * D))[offset] = v_scale;
}

// Asks for the lines that the token's keys and values will be written to.
static inline void expect_kv_int8(const int8_t* k_block, const int8_t* v_block, int64_t D, int64_t size, int64_t offset) {
  for (int64_t d = 0; d < D / 2; ++d) __builtin_prefetch(k_block + d * size * 2 + offset / 16 * 32, 1);
  for (int64_t i = 0; i < D * 2; i += 64) __builtin_prefetch(v_block + offset / 2 * D * 2 + i, 1);
  __builtin_prefetch(k_block + size * D + offset * 4, 1);
  __builtin_prefetch(v_block + size * D + offset * 4, 1);
}

// Sixteen firsts and sixteen seconds -> sixteen pairs of bf16, the upper halves of floats whose lower halves are zero.
static inline void widen_pairs(const int8_t* p, bf16* out) {
  const v16 first = vload_i8(p), second = vload_i8(p + 16);
#if MILLPOND_AVX512
  const __m512i low = _mm512_srli_epi32(_mm512_castps_si512(first.a), 16);
  _mm512_store_si512(out, _mm512_or_si512(low, _mm512_castps_si512(second.a)));
#else
  const __m256i low_a = _mm256_srli_epi32(_mm256_castps_si256(first.a), 16), low_b = _mm256_srli_epi32(_mm256_castps_si256(first.b), 16);
  _mm256_store_si256((__m256i*)out, _mm256_or_si256(low_a, _mm256_castps_si256(second.a)));
  _mm256_store_si256((__m256i*)(out + 16), _mm256_or_si256(low_b, _mm256_castps_si256(second.b)));
#endif
}

// 32 tokens' keys -> [D/2][32][2], and values -> [16][D][2].
static inline void widen_keys(const int8_t* k, int64_t D, int64_t size, bf16* out) {
  for (int64_t d = 0; d < D / 2; ++d, k += size * 2, out += 64) widen_pairs(k, out), widen_pairs(k + 16 * 2, out + 32);
}
static inline void widen_values(const int8_t* v, int64_t D, bf16* out) {
  for (int64_t i = 0; i < 32 * D; i += 64) widen_pairs(v + i, out + i), widen_pairs(v + i + 32, out + i + 32);
}
// The same as floats: keys -> [D][32], values -> [32][D].
static inline void widen_keys(const int8_t* k, int64_t D, int64_t size, float* out) {
  for (int64_t d = 0; d < D; d += 2, k += size * 2, out += 64)
    for (int64_t i = 0; i < 32; i += 16) vstore(out + i, vload_i8(k + i * 2)), vstore(out + 32 + i, vload_i8(k + i * 2 + 16));
}
static inline void widen_values(const int8_t* v, int64_t D, float* out) {
  for (int64_t t = 0; t < 32; t += 2, out += 2 * D)
    for (int64_t d = 0; d < D; d += 16, v += 32) vstore(out + d, vload_i8(v)), vstore(out + D + d, vload_i8(v + 16));
}

}  // namespace MILLPOND_ISA
}  // namespace millpond
