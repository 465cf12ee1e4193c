// A row of floats as int8 with one scale, as it comes or rotated (hadamard.h): what products (gemm_i8.h) and the cache (kv_int8.h)
// make of activations. A row that is not finite gets the scale NaN, so that it stays one.
#pragma once
#include "hadamard.h"

namespace millpond {
namespace MILLPOND_ISA {

// The scale of a row whose number furthest from zero is `largest` (vmax_bits), and what its numbers are multiplied with: 0 where
// all become zero. A row with a number that is not finite has the scale NaN.
static inline float scale_of_row(float largest, float most, float& inverse) {
  const bool is_finite = largest < __builtin_inff(), is_zero = !is_finite || largest < 1e-30f;
  inverse = is_zero ? 0.0f : most / largest;
  return !is_finite ? __builtin_nanf("") : is_zero ? 0.0f : largest / most;
}

// codes[count] = round(rotated row / scale), count a multiple of 64. `load(k)` gives numbers [k, k + 16), a sixty-fourth of them so
// that no sum overflows; `rotated` has room for all.
template <typename Load>
static inline float quantise_rotated(int64_t count, const Load& load, float* rotated, int8_t* codes) {
  v16 peak = vset(0.0f), four[4];
  for (int64_t k = 0; k < count; k += kHadamard) {
    for (int i = 0; i < 4; ++i) four[i] = load(k + i * 16);
    hadamard64(four);
    for (int i = 0; i < 4; ++i) peak = vmax_bits(peak, four[i]);
    if (count > kHadamard)
      for (int i = 0; i < 4; ++i) vstore(rotated + k + i * 16, four[i]);
  }
  float inverse;
  const float scale = scale_of_row(vhmax_bits(peak), 127.0f, inverse);
  if (inverse == 0.0f) {
    memset(codes, 0, count);
    return scale;
  }
  for (int64_t k = 0; k < count; k += kHadamard) {
    if (count > kHadamard)
      for (int i = 0; i < 4; ++i) four[i] = vload(rotated + k + i * 16);
    for (int i = 0; i < 4; ++i) four[i] = four[i] * vset(inverse);
    vstore_64_bytes(codes + k, four);
  }
  return scale;
}

// codes = round(x / scale) with the scale that makes the largest 127. A row that is not finite has the scale NaN.
static inline float quantise_row(const float* x, int64_t D, int8_t* codes) {
  v16 peak = vset(0.0f);
  for (int64_t i = 0; i < D; i += 16) peak = vmax_bits(peak, vload(x + i));
  float inverse;
  const float scale = scale_of_row(vhmax_bits(peak), 127.0f, inverse);
  if (inverse == 0.0f) memset(codes, 0, D);
  else for (int64_t i = 0; i < D; i += 16) vstore_bytes(codes + i, vload(x + i) * vset(inverse));
  return scale;
}

}  // namespace MILLPOND_ISA
}  // namespace millpond
