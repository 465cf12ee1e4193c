// linear with int8 weights: activations become integers by row, products are summed as integers, and the two scales come last.
//
// A row of A is scaled by its largest value to 15 bits, split in two planes of int8 (x = 256 high + low), or to 7 bits, one plane
// (n5 of the op); rows of 7 bits and their weights are rotated first (hadamard.h). Sums of integers are exact: a result does not
// depend on tiles, threads or the instruction set. Weights are packed in panels of 32 outputs, [K/64][2][16][16][4]: what AMX and
// VNNI multiply in groups of four k.
#pragma once
#include "gemm.h"
#include "int8_rows.h"

namespace millpond {
namespace MILLPOND_ISA {

static inline int64_t ceil64(int64_t x) { return (x + 63) & ~int64_t(63); }

// Rows of A as integers: plane 0 is high or all there is. Rows stand `stride` bytes apart, off the multiples of a page.
struct IntRows {
  int8_t* plane[2];
  float* scale;
  int32_t* offset[2];  // what a row's sums start from
  int64_t stride;
};

static inline IntRows place_rows(void* memory, int64_t rows, int64_t K) {
  const int64_t stride = ceil64(K) + 64, padded = (rows + 31) & ~int64_t(31);
  int8_t* data = (int8_t*)memory;
  float* scale = (float*)(data + 2 * padded * stride);
  int32_t* offset = (int32_t*)(scale + padded);
  return {{data, data + padded * stride}, scale, {offset, offset + padded}, stride};
}

// Sixteen numbers of 15 bits as two bytes each.
static inline void store_planes(v16 x, int8_t* high, int8_t* low) {
#if MILLPOND_AVX512
  const __m512i q = _mm512_cvtps_epi32(x.a), h = _mm512_srai_epi32(_mm512_add_epi32(q, _mm512_set1_epi32(128)), 8);
  _mm_storeu_si128((__m128i*)high, _mm512_cvtepi32_epi8(h));
  _mm_storeu_si128((__m128i*)low, _mm512_cvtepi32_epi8(_mm512_sub_epi32(q, _mm512_slli_epi32(h, 8))));
#else
  int32_t q[16];
  _mm256_storeu_si256((__m256i*)q, _mm256_cvtps_epi32(x.a));
  _mm256_storeu_si256((__m256i*)(q + 8), _mm256_cvtps_epi32(x.b));
  for (int i = 0; i < 16; ++i) {
    const int32_t h = (q[i] + 128) >> 8;
    high[i] = int8_t(h);
    low[i] = int8_t(q[i] - h * 256);
  }
#endif
}

// A row of 15 bits.
static inline float quantise_fine(const bf16* x, int64_t padded, int64_t end, int8_t* high, int8_t* low) {
  v16 peak = vset(0.0f);
  for (int64_t k = 0; k < padded; k += 16) peak = vmax_bits(peak, vload_bf16(x + k));
  float inverse;
  const float scale = scale_of_row(vhmax_bits(peak), 127.0f * 256.0f, inverse);
  const int64_t filled = inverse == 0.0f ? 0 : padded;
  for (int64_t k = 0; k < filled; k += 16) store_planes(vload_bf16(x + k) * vset(inverse), high + k, low + k);
  memset(high + filled, 0, end - filled);
  memset(low + filled, 0, end - filled);
  return scale;
}

// What the sums of a row of `count` integers start from: kernels that add 128 to the weights add that much too much.
static inline int32_t offset_of_row(const int8_t* row, int64_t count) {
#if MILLPOND_BF16 && !MILLPOND_AMX
  b64 sum = bset(0);
  for (int64_t k = 0; k < count; k += 64) sum = bdot(sum, bset(0x01010101), bload(row + k));
  return -128 * _mm512_reduce_add_epi32(sum.a);
#else
  return 0;
#endif
}

// Turns rows [first, last) of the op's input into integers. A row with a value that is not finite becomes NaN as a whole.
static void quantise_rows(const Op& op, const Context& ctx, int64_t first, int64_t last, const IntRows& rows) {
  const Buffer& in = ctx.buffers[op.in];
  const int64_t K = op.n[1], padded = ceil32(K);
  float* rotated = (float*)((char*)ctx.scratch + kScratchBytes / 2);
  const v16 part = vset(1.0f / kHadamard);  // made good where the product is scaled: weights are rotated in full
  for (int64_t r = first; r < last; ++r) {
    const bf16* x = (const bf16*)in.data + r * in.stride;
    int8_t *high = rows.plane[0] + r * rows.stride, *low = rows.plane[1] + r * rows.stride;
    const auto load = [&](int64_t k) { return k < padded ? vload_bf16(x + k) * part : vset(0.0f); };
    if (op.n[5] == 1) rows.scale[r] = quantise_rotated(ceil64(K), load, rotated, high);
    else rows.scale[r] = quantise_fine(x, padded, ceil64(K), high, low);
    rows.offset[0][r] = offset_of_row(high, ceil64(K));
    if (op.n[5] == 2) rows.offset[1][r] = offset_of_row(low, ceil64(K));
  }
}

#if MILLPOND_AMX
constexpr int64_t kRowsAtOnce = 32;

// Adds A . panel over KG steps of 64 k. `second` is the rows below the first sixteen, or the low plane of the same rows.
template <bool kSecond, typename Side>
static inline void multiply_i8(const int8_t* a, const int8_t* second, int64_t stride, const int8_t* w, int64_t KG, Side& side) {
  for (int64_t g = 0; g < KG; ++g, w += 2048) {
    side.step();
    tile_step<Tile::kI8, kSecond>(a + g * 64, second + g * 64, stride, w, w + 1024, 64);
  }
}
#else
constexpr int64_t kRowsAtOnce = MILLPOND_BF16 ? 8 : MILLPOND_AVX512 ? 4 : 2;

// VNNI multiplies unsigned by signed. With 128 added to the weights a row's sums are 128 times the sum of its numbers too large,
// and start from that much less (offset_of_row). Without VNNI sums of two products have 16 bits, and signs go over to the weights.
static inline b64 load_weights(const int8_t* w) { return MILLPOND_BF16 ? bflip(bload(w)) : bload(w); }
static inline b64 add_products(b64 sum, b64 weights, b64 four) {
  return MILLPOND_BF16 ? bdot(sum, weights, four) : bdot_signed(sum, four, weights);
}

// c[r][32] += row r . panel over KG steps of 64 k.
template <int R, typename Side>
static inline void rows_dot(const int8_t* const* a, const int8_t* w, int64_t KG, int32_t* const* c, Side& side) {
  b64 x[R], y[R];
  for (int r = 0; r < R; ++r) x[r] = bload(c[r]), y[r] = bload(c[r] + 16);
  for (int64_t g = 0; g < KG; ++g, w += 2048) {
    side.step();
    for (int j = 0; j < 16; ++j) {
      const b64 left = load_weights(w + j * 64), right = load_weights(w + 1024 + j * 64);
      for (int r = 0; r < R; ++r) {
        int32_t bytes;
        memcpy(&bytes, a[r] + g * 64 + j * 4, 4);
        const b64 four = bset(bytes);
        x[r] = add_products(x[r], left, four);
        y[r] = add_products(y[r], right, four);
      }
    }
  }
  for (int r = 0; r < R; ++r) bstore(c[r], x[r]), bstore(c[r] + 16, y[r]);
}
#endif

// A block: 32 rows of one plane, or 16 rows of two (high sums first, low sums behind).
template <int kPlanes>
constexpr int64_t rows_of_block() {
  return kPlanes == 1 ? 32 : 16;
}

// c (+)= rows [0, count) of A from `row` on . panel, k-steps [g0, g1); added to `before` unless that is null.
template <int kPlanes, typename Side>
static inline void block_i8(const IntRows& rows, int64_t row, int64_t count, const int8_t* w, int64_t g0, int64_t g1, const int32_t* before,
                            int32_t* c, Side& side) {
  const int8_t* a = rows.plane[0] + row * rows.stride + g0 * 64;
  const int8_t* second = kPlanes == 1 ? a + 16 * rows.stride : rows.plane[1] + row * rows.stride + g0 * 64;
  w += g0 * 2048;
#if MILLPOND_AMX
  if (kPlanes == 2 || count > 16) {
    begin_block<true>((const float*)before);
    multiply_i8<true>(a, second, rows.stride, w, g1 - g0, side);
    store_tiles<true>(c, 32);
  } else {
    begin_block<false>((const float*)before);
    multiply_i8<false>(a, second, rows.stride, w, g1 - g0, side);
    store_tiles<false>(c, 32);
  }
#else
  if (before && before != c) memcpy(c, before, 4096);
  const int8_t* from[32];
  int32_t* to[32];
  int64_t num = 0;
  for (int plane = 0; plane < kPlanes; ++plane)
    for (int64_t r = 0; r < count; ++r, ++num) {
      from[num] = (plane ? second : a) + r * rows.stride;
      to[num] = c + plane * 512 + r * 32;
      if (before) continue;
      const b64 start = bset(rows.offset[plane][row + r]);
      bstore(to[num], start), bstore(to[num] + 16, start);
    }
  for_rows<kRowsAtOnce>(num, [&](auto some, int64_t i) { rows_dot<decltype(some)::value>(from + i, w, g1 - g0, to + i, side); });
#endif
}

// How often a block of so many rows goes through its weights.
static inline int64_t passes_of_block(int64_t rows) { return MILLPOND_AMX ? 1 : (rows + kRowsAtOnce - 1) / kRowsAtOnce; }

constexpr int64_t kMostInt8Steps = 64;  // of 64 k; longer sums are cut, as in gemm.h
constexpr int64_t kInt8StepsOfCut = 32;

template <int kEpilogue, int kPlanes>
static void run_linear_i8(const Op& op, const Context& ctx, int thread, int num_threads) {
  using Sides = Side<bf16, kEpilogue, kPlanes>;
  const int64_t M = op.rows ? ctx.step->L : ctx.step->T, K = op.n[1];
  const int64_t panels = ceil32(op.n[0]) / 32, KG = ceil64(K) / 64;
  const Cut cut = cut_linear(op, ctx, M, num_threads);
  const int64_t pieces = cut.groups * cut.row_blocks, step_rows = rows_of_block<kPlanes>();
  const bool is_small = M <= kFewRows;  // then every thread makes its own integers, and needs to wait for nobody
  const IntRows rows = place_rows(is_small ? ctx.scratch : ctx.int_rows, M, K);
  if (is_small) quantise_rows(op, ctx, 0, M, rows);
  Sides side{{}, {op, ctx, rows.scale}};
  if (kEpilogue == kStoreF32 && (op.flags & kFindPeaks)) clear_peaks(ctx.peaks, M);
  alignas(64) int32_t two[2][1024];
  int32_t* sums = (int32_t*)((char*)ctx.scratch + kScratchBytes / 2);
  const int64_t most = KG > kMostInt8Steps ? kInt8StepsOfCut : KG;
  int64_t turn = 0, piece = thread;
  while (piece < pieces) {
    const int64_t next = num_threads + ctx.counter->fetch_add(1, std::memory_order_relaxed);
    const int64_t p0 = piece / cut.row_blocks * cut.panels, p1 = min64(panels, p0 + cut.panels);
    const int64_t m0 = piece % cut.row_blocks * cut.rows, m1 = min64(M, m0 + cut.rows), blocks = (m1 - m0 + step_rows - 1) / step_rows;
    aim_ahead(op, ctx, cut, piece, next, (p1 - p0) * KG * max64(1, blocks) * passes_of_block(min64(step_rows, M) * kPlanes), thread, num_threads, side.ahead);
    for (int64_t g0 = 0; g0 < KG; g0 += most) {
      const int64_t g1 = min64(KG, g0 + most);
      for (int64_t m = m0, block = 0; m < m1; m += step_rows, ++block) {
        const int64_t count = min64(step_rows, m1 - m);
        for (int64_t p = p0; p < p1; ++p, turn ^= 1) {
          int32_t* kept = sums + ((p - p0) * blocks + block) * 1024;
          int32_t* c = g1 < KG ? kept : two[turn];
          if (g1 == KG && M > 32) side.pending.expect(m, count, p);
          block_i8<kPlanes>(rows, m, count, (const int8_t*)op.p[0] + p * KG * 2048, g0, g1, g0 ? kept : nullptr, c, side);
          side.pending.flush();
          if (g1 == KG) side.pending.take((const float*)c, m, count, p, g1 - g0);
        }
      }
    }
    piece = next;
  }
  side.pending.flush();
}

template <int kPlanes>
static void run_linear_planes(const Op& op, const Context& ctx, int thread, int num_threads) {
  choose_epilogue(op.n[3], [&](auto epilogue) { run_linear_i8<decltype(epilogue)::value, kPlanes>(op, ctx, thread, num_threads); });
}

}  // namespace MILLPOND_ISA
}  // namespace millpond
