// The Walsh-Hadamard transform of 64 numbers: each result is a sum of all of them with the signs of one row of the matrix.
//
// Spreads a value that stands out over its 64 neighbours, so that few bits a row lose little. The matrix is symmetric and its
// square is 64 times the identity: a product of two rows that are both rotated is 64 times the product of the rows. Method: QuaRot
// (Ashkboos et al. 2024), here in blocks, on the way into each product instead of folded into the weights before it.
#pragma once
#include "simd.h"

namespace millpond {
namespace MILLPOND_ISA {

constexpr int64_t kHadamard = 64;  // numbers that are transformed together

// Lane i of the result is lane i ^ kDistance of x.
template <int kDistance>
static inline v16 vswap(v16 x) {
#if MILLPOND_AVX512
  if (kDistance == 8) return {_mm512_shuffle_f32x4(x.a, x.a, 0x4e)};
  if (kDistance == 4) return {_mm512_shuffle_f32x4(x.a, x.a, 0xb1)};
  return {_mm512_permute_ps(x.a, kDistance == 2 ? 0x4e : 0xb1)};
#else
  if (kDistance == 8) return {x.b, x.a};
  if (kDistance == 4) return {_mm256_permute2f128_ps(x.a, x.a, 1), _mm256_permute2f128_ps(x.b, x.b, 1)};
  constexpr int kOrder = kDistance == 2 ? 0x4e : 0xb1;
  return {_mm256_permute_ps(x.a, kOrder), _mm256_permute_ps(x.b, kOrder)};
#endif
}

// Sums and differences of lanes kDistance apart: the sum in the lower, the difference in the upper one.
template <int kDistance>
static inline v16 vbutterfly(v16 x) {
  constexpr float one = kDistance == 1 ? -1.0f : 1.0f, two = kDistance == 2 ? -1.0f : 1.0f;
  constexpr float four = kDistance == 4 ? -1.0f : 1.0f, eight = kDistance == 8 ? -1.0f : 1.0f;
  alignas(64) static const float sign[16] = {1, one, two, one * two, four, one * four, two * four, one * two * four,
                                             eight, one * eight, two * eight, one * two * eight, four * eight,
                                             one * four * eight, two * four * eight, one * two * four * eight};
  return vfma(x, vload(sign), vswap<kDistance>(x));
}

// Transforms the sixty-four numbers of four registers. Sums of two at a time, in a fixed order: equal bits on every instruction set.
static inline void hadamard64(v16 x[4]) {
  const v16 a = x[0] + x[1], b = x[0] - x[1], c = x[2] + x[3], d = x[2] - x[3];
  x[0] = a + c, x[1] = b + d, x[2] = a - c, x[3] = b - d;
  for (int i = 0; i < 4; ++i) x[i] = vbutterfly<1>(vbutterfly<2>(vbutterfly<4>(vbutterfly<8>(x[i]))));
}

// Transforms x[D], D a multiple of 64, times `factor`.
static inline void hadamard_row(const float* x, int64_t D, float factor, float* out) {
  for (int64_t d = 0; d < D; d += kHadamard) {
    v16 four[4];
    for (int i = 0; i < 4; ++i) four[i] = vload(x + d + i * 16) * vset(factor);
    hadamard64(four);
    for (int i = 0; i < 4; ++i) vstore(out + d + i * 16, four[i]);
  }
}

}  // namespace MILLPOND_ISA
}  // namespace millpond
