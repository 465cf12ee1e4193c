// v16 (sixteen floats) and b64 (sixty-four bytes), as one AVX-512 register or two AVX2 ones, and the few functions the kernels need.
//
// Everything lives in a namespace named after the instruction set: this header is compiled once per set, and two bodies
// of one inline function must never meet in the linker. For the same reason kernels use nothing of the C++ library.
#pragma once
#include <immintrin.h>
#include <cstdint>
#include <cstring>

#define MILLPOND_AVX512 (MILLPOND_ISA_LEVEL >= 1)
#define MILLPOND_BF16 (MILLPOND_ISA_LEVEL >= 2)
#define MILLPOND_AMX (MILLPOND_ISA_LEVEL >= 3)

namespace millpond {
namespace MILLPOND_ISA {

using bf16 = uint16_t;

static inline int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t max64(int64_t a, int64_t b) { return a > b ? a : b; }
static inline int64_t ceil32(int64_t x) { return (x + 31) & ~int64_t(31); }

static inline float bf16_to_float(bf16 x) {
  uint32_t u = uint32_t(x) << 16;
  float f;
  memcpy(&f, &u, 4);
  return f;
}
static inline bf16 float_to_bf16(float f) {
  uint32_t u;
  memcpy(&u, &f, 4);
  if ((u & 0x7fffffffu) > 0x7f800000u) return bf16((u >> 16) | 0x40);  // keep NaN a NaN
  return bf16((u + 0x7fff + ((u >> 16) & 1)) >> 16);
}

static inline float half_to_float(const void* p) {
  uint16_t half;
  memcpy(&half, p, 2);
  return _cvtsh_ss(half);
}

#if MILLPOND_AVX512
struct v16 { __m512 a; };
static inline v16 vset(float x) { return {_mm512_set1_ps(x)}; }
static inline v16 vload(const float* p) { return {_mm512_loadu_ps(p)}; }
static inline void vstore(float* p, v16 x) { _mm512_storeu_ps(p, x.a); }
static inline v16 operator+(v16 x, v16 y) { return {_mm512_add_ps(x.a, y.a)}; }
static inline v16 operator-(v16 x, v16 y) { return {_mm512_sub_ps(x.a, y.a)}; }
static inline v16 operator*(v16 x, v16 y) { return {_mm512_mul_ps(x.a, y.a)}; }
static inline v16 operator/(v16 x, v16 y) { return {_mm512_div_ps(x.a, y.a)}; }
static inline v16 vfma(v16 x, v16 y, v16 z) { return {_mm512_fmadd_ps(x.a, y.a, z.a)}; }
static inline v16 vmax(v16 x, v16 y) { return {_mm512_max_ps(x.a, y.a)}; }
static inline v16 vmin(v16 x, v16 y) { return {_mm512_min_ps(x.a, y.a)}; }
static inline v16 vround(v16 x) { return {_mm512_roundscale_ps(x.a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
static inline float vsum(v16 x) { return _mm512_reduce_add_ps(x.a); }
static inline float vhmax(v16 x) { return _mm512_reduce_max_ps(x.a); }
// x * 2^n for whole n
static inline v16 vscale2(v16 x, v16 n) { return {_mm512_scalef_ps(x.a, n.a)}; }
// x - floor(x), and x * 2^floor(n)
static inline v16 vfraction(v16 x) { return {_mm512_reduce_ps(x.a, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC)}; }
static inline v16 vscale2_floor(v16 x, v16 n) { return vscale2(x, n); }
// lane i: i < n ? x : y
static inline v16 vselect_below(int64_t n, v16 x, v16 y) {
  __mmask16 m = n >= 16 ? 0xffff : (n <= 0 ? 0 : __mmask16((1u << n) - 1));
  return {_mm512_mask_blend_ps(m, y.a, x.a)};
}
// lane i: x[i] has its sign set ? y : z
static inline v16 vselect_negative(v16 x, v16 y, v16 z) { return {_mm512_mask_blend_ps(_mm512_movepi32_mask(_mm512_castps_si512(x.a)), z.a, y.a)}; }
// lane i: x > y ? a : b
static inline v16 vselect_greater(v16 x, v16 y, v16 a, v16 b) { return {_mm512_mask_blend_ps(_mm512_cmp_ps_mask(x.a, y.a, _CMP_GT_OQ), b.a, a.a)}; }
// The larger of the two without their signs, by their bits: infinity is above all numbers and NaN above infinity.
static inline v16 vmax_bits(v16 x, v16 y) {
  const __m512i unsigned_y = _mm512_and_si512(_mm512_castps_si512(y.a), _mm512_set1_epi32(0x7fffffff));
  return {_mm512_castsi512_ps(_mm512_max_epi32(_mm512_castps_si512(x.a), unsigned_y))};
}
static inline float vhmax_bits(v16 x) { return _mm_cvtss_f32(_mm_castsi128_ps(_mm_cvtsi32_si128(_mm512_reduce_max_epi32(_mm512_castps_si512(x.a))))); }
// Sixteen numbers from -128 to 127 (here, not with AVX2, to 255), rounded, as bytes; and sixty-four, to 127.
static inline void vstore_bytes(int8_t* p, v16 x) { _mm_storeu_si128((__m128i*)p, _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(x.a))); }
static inline void vstore_64_bytes(int8_t* p, const v16 x[4]) {
  const __m512i low = _mm512_packs_epi32(_mm512_cvtps_epi32(x[0].a), _mm512_cvtps_epi32(x[1].a));
  const __m512i high = _mm512_packs_epi32(_mm512_cvtps_epi32(x[2].a), _mm512_cvtps_epi32(x[3].a));
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  _mm512_storeu_si512(p, _mm512_permutexvar_epi32(order, _mm512_packs_epi16(low, high)));
}
// Sixteen bytes to p[lane], p[4 + lane], ...; sixteen bf16 to p[lane], p[2 + lane], ...: nothing between them is written.
static inline void vscatter_fours(int8_t* p, int64_t lane, const int8_t* bytes) {
  const __m512i wide = _mm512_sll_epi32(_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)bytes)), _mm_cvtsi64_si128(lane * 8));
  _mm512_mask_storeu_epi8(p, 0x1111111111111111ull << lane, wide);
}
static inline void vscatter_pairs(bf16* p, int64_t lane, const bf16* values) {
  const __m512i wide = _mm512_sll_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)values)), _mm_cvtsi64_si128(lane * 16));
  _mm512_mask_storeu_epi16(p, 0x55555555u << lane, wide);
}
// lane i: x is NaN ? x : y
static inline v16 vkeep_nan(v16 x, v16 y) { return {_mm512_mask_mov_ps(y.a, _mm512_cmp_ps_mask(x.a, x.a, _CMP_UNORD_Q), x.a)}; }
static inline v16 vload_bf16(const bf16* p) {
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p)), 16))};
}
static inline v16 vload_f16(const void* p) { return {_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p))}; }
static inline v16 vload_i32(const int32_t* p) { return {_mm512_cvtepi32_ps(_mm512_loadu_si512(p))}; }
// sixteen pairs of bf16 -> the first and the second of each pair
static inline void vload_pairs(const bf16* p, v16& first, v16& second) {
  __m512i w = _mm512_loadu_si512(p);
  first.a = _mm512_castsi512_ps(_mm512_slli_epi32(w, 16));
  second.a = _mm512_castsi512_ps(_mm512_and_si512(w, _mm512_set1_epi32(int(0xffff0000u))));
}
#if MILLPOND_BF16
static inline void vstore_bf16(bf16* p, v16 x) { _mm256_storeu_si256((__m256i*)p, (__m256i)_mm512_cvtneps_pbh(x.a)); }
#else
static inline void vstore_bf16(bf16* p, v16 x) {
  __m512i u = _mm512_castps_si512(x.a);
  __m512i lsb = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
  __m512i r = _mm512_srli_epi32(_mm512_add_epi32(u, _mm512_add_epi32(lsb, _mm512_set1_epi32(0x7fff))), 16);
  __mmask16 nan = _mm512_cmp_ps_mask(x.a, x.a, _CMP_UNORD_Q);
  r = _mm512_mask_mov_epi32(r, nan, _mm512_set1_epi32(0x7fc0));
  _mm256_storeu_si256((__m256i*)p, _mm512_cvtepi32_epi16(r));
}
#endif

// b64: sixty-four bytes, or sixteen int32.
struct b64 { __m512i a; };
static inline b64 bload(const void* p) { return {_mm512_loadu_si512(p)}; }
static inline void bstore(void* p, b64 x) { _mm512_storeu_si512(p, x.a); }
// What was loaded is in registers, all of it, before anything behind this uses it.
template <int N>
static inline void bloaded(b64 (&x)[N]) {
  for (int i = 0; i < N; ++i) asm volatile("" : "+v"(x[i].a));
}
static inline b64 bset(int32_t x) { return {_mm512_set1_epi32(x)}; }
static inline b64 blow_halves(b64 x) { return {_mm512_and_si512(x.a, _mm512_set1_epi8(15))}; }
static inline b64 bhigh_halves(b64 x) { return {_mm512_and_si512(_mm512_srli_epi16(x.a, 4), _mm512_set1_epi8(15))}; }
// Signed bytes plus 128, unsigned.
static inline b64 bflip(b64 x) { return {_mm512_xor_si512(x.a, _mm512_set1_epi8(int8_t(-128)))}; }
static inline b64 bsub8(b64 x, b64 y) { return {_mm512_sub_epi8(x.a, y.a)}; }
static inline b64 badd(b64 x, b64 y) { return {_mm512_add_epi32(x.a, y.a)}; }
// sum + products of four unsigned bytes (0 to 127, with VNNI to 255) and four signed ones, sixteen times
static inline b64 bdot(b64 sum, b64 x, b64 y) {
#if MILLPOND_BF16
  return {_mm512_dpbusd_epi32(sum.a, x.a, y.a)};
#else
  return {_mm512_add_epi32(sum.a, _mm512_madd_epi16(_mm512_maddubs_epi16(x.a, y.a), _mm512_set1_epi16(1)))};
#endif
}
static inline v16 bto_float(b64 x) { return {_mm512_cvtepi32_ps(x.a)}; }
#else
struct b64 { __m256i a, b; };
static inline b64 bload(const void* p) { return {_mm256_loadu_si256((const __m256i*)p), _mm256_loadu_si256((const __m256i*)p + 1)}; }
static inline void bstore(void* p, b64 x) { _mm256_storeu_si256((__m256i*)p, x.a), _mm256_storeu_si256((__m256i*)p + 1, x.b); }
static inline b64 bset(int32_t x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
static inline b64 blow_halves(b64 x) { return {_mm256_and_si256(x.a, _mm256_set1_epi8(15)), _mm256_and_si256(x.b, _mm256_set1_epi8(15))}; }
static inline b64 bhigh_halves(b64 x) { return blow_halves({_mm256_srli_epi16(x.a, 4), _mm256_srli_epi16(x.b, 4)}); }
static inline b64 bflip(b64 x) { return {_mm256_xor_si256(x.a, _mm256_set1_epi8(int8_t(-128))), _mm256_xor_si256(x.b, _mm256_set1_epi8(int8_t(-128)))}; }
static inline b64 badd(b64 x, b64 y) { return {_mm256_add_epi32(x.a, y.a), _mm256_add_epi32(x.b, y.b)}; }
static inline __m256i dot_half(__m256i sum, __m256i x, __m256i y) {
  return _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(x, y), _mm256_set1_epi16(1)));
}
static inline b64 bdot(b64 sum, b64 x, b64 y) { return {dot_half(sum.a, x.a, y.a), dot_half(sum.b, x.b, y.b)}; }
struct v16 { __m256 a, b; };
static inline v16 bto_float(b64 x) { return {_mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b)}; }
static inline v16 vset(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
static inline v16 vload(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
static inline void vstore(float* p, v16 x) { _mm256_storeu_ps(p, x.a); _mm256_storeu_ps(p + 8, x.b); }
static inline v16 operator+(v16 x, v16 y) { return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
static inline v16 operator-(v16 x, v16 y) { return {_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)}; }
static inline v16 operator*(v16 x, v16 y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
static inline v16 operator/(v16 x, v16 y) { return {_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)}; }
static inline v16 vfma(v16 x, v16 y, v16 z) { return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)}; }
static inline v16 vmax(v16 x, v16 y) { return {_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)}; }
static inline v16 vmin(v16 x, v16 y) { return {_mm256_min_ps(x.a, y.a), _mm256_min_ps(x.b, y.b)}; }
static inline v16 vround(v16 x) {
  return {_mm256_round_ps(x.a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC), _mm256_round_ps(x.b, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
static inline float vsum(v16 x) {
  __m256 s = _mm256_add_ps(x.a, x.b);
  __m128 q = _mm_add_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1));
  q = _mm_add_ps(q, _mm_movehl_ps(q, q));
  return _mm_cvtss_f32(_mm_add_ss(q, _mm_shuffle_ps(q, q, 1)));
}
static inline float vhmax(v16 x) {
  __m256 s = _mm256_max_ps(x.a, x.b);
  __m128 q = _mm_max_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1));
  q = _mm_max_ps(q, _mm_movehl_ps(q, q));
  return _mm_cvtss_f32(_mm_max_ss(q, _mm_shuffle_ps(q, q, 1)));
}
static inline __m256 scale2_half(__m256 x, __m256 n) {
  __m256i e = _mm256_cvtps_epi32(_mm256_max_ps(n, _mm256_set1_ps(-127.f)));
  return _mm256_mul_ps(x, _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(e, _mm256_set1_epi32(127)), 23)));
}
static inline v16 vscale2(v16 x, v16 n) { return {scale2_half(x.a, n.a), scale2_half(x.b, n.b)}; }
static inline v16 vfraction(v16 x) { return {_mm256_sub_ps(x.a, _mm256_floor_ps(x.a)), _mm256_sub_ps(x.b, _mm256_floor_ps(x.b))}; }
static inline v16 vscale2_floor(v16 x, v16 n) { return vscale2(x, {_mm256_floor_ps(n.a), _mm256_floor_ps(n.b)}); }
static inline v16 vselect_below(int64_t n, v16 x, v16 y) {
  __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), limit = _mm256_set1_epi32(int(n < -1 ? -1 : (n > 16 ? 16 : n)));
  __m256 low = _mm256_castsi256_ps(_mm256_cmpgt_epi32(limit, lane));
  __m256 high = _mm256_castsi256_ps(_mm256_cmpgt_epi32(limit, _mm256_add_epi32(lane, _mm256_set1_epi32(8))));
  return {_mm256_blendv_ps(y.a, x.a, low), _mm256_blendv_ps(y.b, x.b, high)};
}
static inline v16 vselect_negative(v16 x, v16 y, v16 z) { return {_mm256_blendv_ps(z.a, y.a, x.a), _mm256_blendv_ps(z.b, y.b, x.b)}; }
static inline v16 vselect_greater(v16 x, v16 y, v16 a, v16 b) {
  return {_mm256_blendv_ps(b.a, a.a, _mm256_cmp_ps(x.a, y.a, _CMP_GT_OQ)), _mm256_blendv_ps(b.b, a.b, _mm256_cmp_ps(x.b, y.b, _CMP_GT_OQ))};
}
static inline v16 vmax_bits(v16 x, v16 y) {
  const __m256 no_sign = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff));
  const __m256i a = _mm256_castps_si256(_mm256_and_ps(y.a, no_sign)), b = _mm256_castps_si256(_mm256_and_ps(y.b, no_sign));
  return {_mm256_castsi256_ps(_mm256_max_epi32(_mm256_castps_si256(x.a), a)), _mm256_castsi256_ps(_mm256_max_epi32(_mm256_castps_si256(x.b), b))};
}
static inline float vhmax_bits(v16 x) {
  const __m256i eight = _mm256_max_epi32(_mm256_castps_si256(x.a), _mm256_castps_si256(x.b));
  __m128i four = _mm_max_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
  four = _mm_max_epi32(four, _mm_shuffle_epi32(four, 0x4e));
  return _mm_cvtss_f32(_mm_castsi128_ps(_mm_max_epi32(four, _mm_shuffle_epi32(four, 0xb1))));
}
static inline void vstore_bytes(int8_t* p, v16 x) {
  const __m256i words = _mm256_packs_epi32(_mm256_cvtps_epi32(x.a), _mm256_cvtps_epi32(x.b));  // 0-3 8-11 4-7 12-15
  const __m256i sorted = _mm256_permute4x64_epi64(words, 0xd8);
  _mm_storeu_si128((__m128i*)p, _mm_packs_epi16(_mm256_castsi256_si128(sorted), _mm256_extracti128_si256(sorted, 1)));
}
static inline void vstore_64_bytes(int8_t* p, const v16 x[4]) {
  for (int i = 0; i < 4; ++i) vstore_bytes(p + i * 16, x[i]);
}
static inline void vscatter_fours(int8_t* p, int64_t lane, const int8_t* bytes) {
  for (int i = 0; i < 16; ++i) p[i * 4 + lane] = bytes[i];
}
static inline void vscatter_pairs(bf16* p, int64_t lane, const bf16* values) {
  for (int i = 0; i < 16; ++i) p[i * 2 + lane] = values[i];
}
static inline v16 vkeep_nan(v16 x, v16 y) {
  return {_mm256_blendv_ps(y.a, x.a, _mm256_cmp_ps(x.a, x.a, _CMP_UNORD_Q)), _mm256_blendv_ps(y.b, x.b, _mm256_cmp_ps(x.b, x.b, _CMP_UNORD_Q))};
}
static inline __m256 load8_bf16(const bf16* p) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p)), 16));
}
static inline v16 vload_bf16(const bf16* p) { return {load8_bf16(p), load8_bf16(p + 8)}; }
static inline v16 vload_f16(const void* p) {
  return {_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p)), _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p + 1))};
}
static inline v16 vload_i32(const int32_t* p) {
  return {_mm256_cvtepi32_ps(_mm256_loadu_si256((const __m256i*)p)), _mm256_cvtepi32_ps(_mm256_loadu_si256((const __m256i*)(p + 8)))};
}
static inline void vload_pairs(const bf16* p, v16& first, v16& second) {
  __m256i u = _mm256_loadu_si256((const __m256i*)p), w = _mm256_loadu_si256((const __m256i*)(p + 16));
  __m256i mask = _mm256_set1_epi32(int(0xffff0000u));
  first = {_mm256_castsi256_ps(_mm256_slli_epi32(u, 16)), _mm256_castsi256_ps(_mm256_slli_epi32(w, 16))};
  second = {_mm256_castsi256_ps(_mm256_and_si256(u, mask)), _mm256_castsi256_ps(_mm256_and_si256(w, mask))};
}
static inline void vstore_bf16(bf16* p, v16 x) {
  float f[16];
  vstore(f, x);
  for (int i = 0; i < 16; ++i) p[i] = float_to_bf16(f[i]);
}
#endif

// sum + products of four signed bytes (x: -128 to 127, y: -127 to 127), sixteen times.
static inline b64 bdot_signed(b64 sum, b64 x, b64 y) {
#if MILLPOND_AVX512
  const __m512i moved = _mm512_mask_sub_epi8(y.a, _mm512_movepi8_mask(x.a), _mm512_setzero_si512(), y.a);
  return bdot(sum, {_mm512_abs_epi8(x.a)}, {moved});
#else
  return bdot(sum, {_mm256_abs_epi8(x.a), _mm256_abs_epi8(x.b)}, {_mm256_sign_epi8(y.a, x.a), _mm256_sign_epi8(y.b, x.b)});
#endif
}

// e^x, relative error below 2e-7 (Cephes polynomial); inputs below -87.3 count as -87.3.
static inline v16 vexp(v16 x) {
  v16 clamped = vmin(vmax(x, vset(-87.33654f)), vset(88.72283f));
  v16 n = vround(clamped * vset(1.44269504088896341f));
  v16 r = vfma(n, vset(-0.693359375f), clamped);
  r = vfma(n, vset(2.12194440e-4f), r);
  v16 p = vset(1.9875691500e-4f);
  p = vfma(p, r, vset(1.3981999507e-3f));
  p = vfma(p, r, vset(8.3334519073e-3f));
  p = vfma(p, r, vset(4.1665795894e-2f));
  p = vfma(p, r, vset(1.6666665459e-1f));
  p = vfma(p, r, vset(5.0000001201e-1f));
  p = vfma(p, r * r, r + vset(1.0f));
  return vscale2(p, n);
}
// 2^x for probabilities that end up in bf16: relative error below 7.5e-5 (bf16 rounds at 3.9e-3).
static inline v16 vexp2_coarse(v16 x) {
  v16 clamped = vmax(x, vset(-125.0f));  // the result stays a normal number: denormal ones cost a hundred cycles each
  v16 r = vfraction(clamped);
  v16 p = vfma(vset(0.07802452f), r, vset(0.22606716f));
  p = vfma(p, r, vset(0.69583354f));
  p = vfma(p, r, vset(0.99992522f));
  return vscale2_floor(p, clamped);
}
// silu for results stored as float, and for results stored as bf16 (relative error below 3e-4); the pointer only says which.
static inline v16 vsilu(const float*, v16 x) { return x / (vset(1.0f) + vexp(vset(0.0f) - x)); }
static inline v16 vsilu(const bf16*, v16 x) {
#if MILLPOND_AVX512
  // Past 126 the power of two would overflow where the result is 0 anyway; x itself keeps NaN and infinity right.
  const v16 power = vexp2_coarse(vmin(x * vset(-1.44269504f), vset(126.0f)));
  return {_mm512_mul_ps(x.a, _mm512_rcp14_ps((power + vset(1.0f)).a))};
#else
  return x / (vset(1.0f) + vexp2_coarse(vmin(x * vset(-1.44269504f), vset(126.0f))));
#endif
}
static inline v16 vtanh(v16 x) {
  v16 e = vexp(vmin(vmax(x, vset(-15.0f)), vset(15.0f)) * vset(2.0f));
  return (e - vset(1.0f)) / (e + vset(1.0f));
}
static inline v16 vgelu_tanh(v16 x) {
  v16 inner = vset(0.7978845608028654f) * vfma(vset(0.044715f) * x * x, x, x);
  return vset(0.5f) * x * (vset(1.0f) + vtanh(inner));
}
// erf form by Abramowitz and Stegun 7.1.26 is good to 1.5e-7 absolute.
static inline v16 vgelu(v16 x) {
  v16 z = x * vset(0.7071067811865476f);
  v16 a = vmax(z, vset(0.0f) - z);
  v16 t = vset(1.0f) / vfma(vset(0.3275911f), a, vset(1.0f));
  v16 p = vfma(vset(1.061405429f), t, vset(-1.453152027f));
  p = vfma(p, t, vset(1.421413741f));
  p = vfma(p, t, vset(-0.284496736f));
  p = vfma(p, t, vset(0.254829592f));
  v16 tail = p * t * vexp(vset(0.0f) - a * a);  // 1 - erf(|z|)
  v16 negative_half = vset(0.5f) * x * tail;    // for x < 0: x * (1 - erf(|z|)) / 2
  v16 positive = x - negative_half;
  return vselect_negative(x, negative_half, positive);
}

// Store sixteen floats as the activation dtype.
template <typename Act> static inline void vstore_act(Act* p, v16 x);
template <> inline void vstore_act<float>(float* p, v16 x) { vstore(p, x); }
template <> inline void vstore_act<bf16>(bf16* p, v16 x) { vstore_bf16(p, x); }

}  // namespace MILLPOND_ISA
}  // namespace millpond
