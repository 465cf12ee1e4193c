// linear: out[M,N] = epilogue(A[M,K] . W[N,K]^T + bias), weights packed in panels of 32 outputs.
//
// Panel layouts: f32 [K][32]; bf16 [K/32][2][16][16][2] (two AMX B tiles a step of 32 k, pairs of k innermost, which is
// also what AVX512-BF16 wants); int8 in gemm_i8.h, 4 bits in gemm_q4.h. Every element of the result is summed over k
// in the same order whatever M is, so a row does not depend on the rows beside it.
#pragma once
#include "epilogue.h"
#include "tiles.h"

namespace millpond {
namespace MILLPOND_ISA {

#if MILLPOND_AVX512
constexpr int kRowsOfBlock = 8;
#else
constexpr int kRowsOfBlock = 2;
#endif

// Calls `run` with how many rows go together, at most kMost (2, 4 or 8), as a constant, and the first of them.
template <int kMost, typename Run>
static inline void for_rows(int64_t rows, const Run& run) {
  int64_t r = 0;
  for (; rows - r >= kMost; r += kMost) run(Constant<kMost>(), r);
  if constexpr (kMost > 4)
    if (rows - r >= 4) run(Constant<4>(), r), r += 4;
  if constexpr (kMost > 2) {
    if (rows - r == 3) return run(Constant<3>(), r);
    if (rows - r == 2) return run(Constant<2>(), r);
  }
  if (rows > r) run(Constant<1>(), r);
}

template <int R, typename Side>
static void block_f32(const float* a, int64_t lda, const float* w, int64_t K, float* c, Side& side) {
  v16 acc[R][2];
  for (int r = 0; r < R; ++r) acc[r][0] = acc[r][1] = vset(0.0f);
  for (int64_t k = 0; k < K; ++k) {
    if (k % 32 == 0) side.step();
    v16 w0 = vload(w + k * 32), w1 = vload(w + k * 32 + 16);
    for (int r = 0; r < R; ++r) {
      v16 x = vset(a[r * lda + k]);
      acc[r][0] = vfma(x, w0, acc[r][0]);
      acc[r][1] = vfma(x, w1, acc[r][1]);
    }
  }
  for (int r = 0; r < R; ++r) vstore(c + r * 32, acc[r][0]), vstore(c + r * 32 + 16, acc[r][1]);
}

template <int R, typename Side>
static void block_bf16(const bf16* a, int64_t lda, const bf16* w, int64_t KT, float* c, Side& side) {
  v16 acc[R][2];
  for (int r = 0; r < R; ++r) acc[r][0] = acc[r][1] = vset(0.0f);
  for (int64_t t = 0; t < KT; ++t, w += 1024) {
    side.step();
    for (int p = 0; p < 16; ++p) {
#if MILLPOND_BF16
      __m512bh w0 = (__m512bh)_mm512_loadu_si512(w + p * 32), w1 = (__m512bh)_mm512_loadu_si512(w + 512 + p * 32);
      for (int r = 0; r < R; ++r) {
        int32_t pair;
        memcpy(&pair, a + r * lda + t * 32 + p * 2, 4);
        __m512bh x = (__m512bh)_mm512_set1_epi32(pair);
        acc[r][0].a = _mm512_dpbf16_ps(acc[r][0].a, x, w0);
        acc[r][1].a = _mm512_dpbf16_ps(acc[r][1].a, x, w1);
      }
#else
      v16 w00, w01, w10, w11;
      vload_pairs(w + p * 32, w00, w01);
      vload_pairs(w + 512 + p * 32, w10, w11);
      for (int r = 0; r < R; ++r) {
        v16 x0 = vset(bf16_to_float(a[r * lda + t * 32 + p * 2])), x1 = vset(bf16_to_float(a[r * lda + t * 32 + p * 2 + 1]));
        acc[r][0] = vfma(x1, w01, vfma(x0, w00, acc[r][0]));
        acc[r][1] = vfma(x1, w11, vfma(x0, w10, acc[r][1]));
      }
#endif
    }
  }
  for (int r = 0; r < R; ++r) vstore(c + r * 32, acc[r][0]), vstore(c + r * 32 + 16, acc[r][1]);
}

#if MILLPOND_AMX
// The accumulators of a block c[32][32], or c[16][32]; from nothing where c is null.
template <bool kTwoRows>
static inline void begin_block(const float* c) {
  if (c) load_tiles<kTwoRows>(c, 32);
  else zero_tiles<kTwoRows>();
}

// Adds A . panel over KT k-steps.
template <bool kTwoRows, typename Side>
static inline void multiply(const bf16* a, int64_t lda, const bf16* w, int64_t KT, Side& side) {
  const bf16* second = a + 16 * lda;
  for (int64_t t = 0; t < KT; ++t, w += 1024) {
    side.step();
    tile_step<Tile::kBF16, kTwoRows>(a + t * 32, second + t * 32, lda * 2, w, w + 512, 64);
  }
}

// c = A . panel for up to 32 rows.
template <bool kTwoRows, typename Side>
static inline void block_amx(const bf16* a, int64_t lda, const bf16* w, int64_t KT, float* c, Side& side) {
  begin_block<kTwoRows>(nullptr);
  multiply<kTwoRows>(a, lda, w, KT, side);
  store_tiles<kTwoRows>(c, 32);
}

constexpr int64_t kMostKSteps = 64;   // longer sums are cut, so that a block of A and of the weights stay in the caches
constexpr int64_t kKStepsOfCut = 32;

// Panels [p0, p1) for rows [m0, m1), more than one block of them: weights stay in the second-level cache, 32 rows of A in the first.
template <typename Side>
static void panels_amx(const Op& op, const Context& ctx, int64_t m0, int64_t m1, int64_t p0, int64_t p1, Side& side) {
  const Buffer& in = ctx.buffers[op.in];
  const int64_t KT = ceil32(op.n[1]) / 32, rows_all = (m1 - m0 + 31) & ~int64_t(31);
  const bf16* w = (const bf16*)op.p[0] + p0 * KT * 1024;
  const int64_t cut = KT > kMostKSteps ? kKStepsOfCut : KT;
  float* sums = (float*)((char*)ctx.scratch + kScratchBytes / 2);   // [panel][row][32], of sums that are cut
  alignas(64) float two[2][32 * 32];
  for (int64_t t0 = 0, turn = 0; t0 < KT; t0 += cut) {
    const int64_t t1 = min64(KT, t0 + cut);
    for (int64_t m = m0; m < m1; m += 32) {
      const int64_t rows = min64(32, m1 - m);
      const bf16* a = (const bf16*)in.data + m * in.stride + t0 * 32;
      for (int64_t p = p0; p < p1; ++p, turn ^= 1) {
        float* kept = sums + ((p - p0) * rows_all + m - m0) * 32;
        float* c = t1 < KT ? kept : two[turn];
        const bf16* tiles = w + ((p - p0) * KT + t0) * 1024;
        if (t1 == KT) side.pending.expect(m, rows, p);
        if (rows > 16) {
          begin_block<true>(t0 ? kept : nullptr);
          multiply<true>(a, in.stride, tiles, t1 - t0, side);
          store_tiles<true>(c, 32);
        } else {
          begin_block<false>(t0 ? kept : nullptr);
          multiply<false>(a, in.stride, tiles, t1 - t0, side);
          store_tiles<false>(c, 32);
        }
        side.pending.flush();
        if (t1 == KT) side.pending.take(c, m, rows, p, t1 - t0);
      }
    }
  }
  side.pending.flush();
}
#endif

#if MILLPOND_BF16 && !MILLPOND_AMX
// c[32] = one row . panel. It waits for memory alone, and the processor's own prefetchers read best what is asked for line after line by loads
// that stand before their products; left to itself the compiler makes them a part of these. Asking ahead in several places as well, as the
// others do, costs a tenth here (docs/design/performance.md, "Loads before products"). Sums are those of `block_bf16`, bit for bit.
template <typename Side>
static void row_bf16(const bf16* a, const bf16* w, int64_t KT, float* c, Side& side) {
  v16 sums[2] = {vset(0.0f), vset(0.0f)};
  for (int64_t t = 0; t < KT; ++t, a += 32) {
    side.pending.step();
    for (int half = 0; half < 2; ++half)
      for (int first = 0; first < 16; first += 8, w += 8 * 32) {
        b64 lines[8];
        for (int i = 0; i < 8; ++i) lines[i] = bload(w + i * 32);
        bloaded(lines);
        for (int i = 0; i < 8; ++i) {
          int32_t pair;
          memcpy(&pair, a + (first + i) * 2, 4);
          sums[half].a = _mm512_dpbf16_ps(sums[half].a, (__m512bh)_mm512_set1_epi32(pair), (__m512bh)lines[i].a);
        }
      }
  }
  vstore(c, sums[0]), vstore(c + 16, sums[1]);
}
#endif

#if !MILLPOND_AMX
template <typename Side>
static void panel_bf16(const bf16* a, int64_t lda, const bf16* w, int64_t KT, int64_t rows, float* c, Side& side) {
#if MILLPOND_BF16
  if (rows == 1) return row_bf16(a, w, KT, c, side);
#endif
  for_rows<kRowsOfBlock>(rows, [&](auto count, int64_t r) { block_bf16<decltype(count)::value>(a + r * lda, lda, w, KT, c + r * 32, side); });
}
#endif

template <typename Side>
static void panel_f32(const float* a, int64_t lda, const float* w, int64_t K, int64_t rows, float* c, Side& side) {
  for_rows<kRowsOfBlock>(rows, [&](auto count, int64_t r) { block_f32<decltype(count)::value>(a + r * lda, lda, w, K, c + r * 32, side); });
}

// One panel for rows [m0, m1), 32 at a time. `two` holds the block at work and the one whose rows are being stored.
template <typename Side>
static void panel_of_rows(const Op& op, const Context& ctx, int64_t m0, int64_t m1, int64_t panel, float (*two)[32 * 32], int64_t& turn, Side& side) {
  const Buffer& in = ctx.buffers[op.in];
  const int64_t K = op.n[1], KT = ceil32(K) / 32;
  const bf16* w = (const bf16*)op.p[0] + panel * KT * 1024;
  for (int64_t m = m0; m < m1; m += 32, turn ^= 1) {
    const int64_t rows = min64(32, m1 - m);
    float* c = two[turn];
    if (op.n[2] == kF32) {
      panel_f32((const float*)in.data + m * in.stride, in.stride, (const float*)op.p[0] + panel * K * 32, K, rows, c, side);
    } else {
      // A's buffer has padding of 32 rows, so reading past `rows` is safe.
      const bf16* a = (const bf16*)in.data + m * in.stride;
#if MILLPOND_AMX
      if (rows > 16) block_amx<true>(a, in.stride, w, KT, c, side);
      else block_amx<false>(a, in.stride, w, KT, c, side);
#else
      panel_bf16(a, in.stride, w, KT, rows, c, side);
#endif
    }
    side.pending.flush();
    side.pending.take(c, m, rows, panel, KT);
  }
}

constexpr int64_t kFewRows = kManyRows - 1;

static inline int64_t panel_bytes(const Op& op) {
  const int64_t K = op.n[1];
  switch (op.n[2]) {
    case kF32: return K * 128;
    case kBF16: return ceil32(K) * 64;
    case kI8: return ((K + 63) & ~int64_t(63)) * 32;
    default: return ceil32(K) / 32 * q4_group_bytes(op.n[2]);
  }
}

// How a product is cut into pieces: `panels` panels for `rows` rows each, counted through all rows of a group of panels first.
struct Cut {
  int64_t rows, panels, row_blocks, groups;
};

static inline Cut cut_linear(const Op& op, const Context& ctx, int64_t M, int num_threads) {
  const int64_t panels = ceil32(op.n[0]) / 32, bytes = panel_bytes(op);
  // Pieces a thread, so that threads end together. One row waits for memory alone, which is read best in long stretches; several compute too,
  // and the more pieces the less one thread waits for the other. Tiles were only measured with fewer (docs/design/performance.md).
  constexpr int64_t kPieces = MILLPOND_AMX ? 4 : 8;
  if (M <= kFewRows) {  // no more of the weights than a quarter of the second-level cache
    const int64_t fair = panels / (num_threads * (M == 1 ? 4 : kPieces)), each = max64(1, min64(fair, ctx.cache_bytes / 4 / bytes));
    return {M, each, 1, (panels + each - 1) / each};
  }
  // A piece's weights take half of the second-level cache at most.
  const int64_t blocks = (M + 127) / 128, rows = ((M + blocks - 1) / blocks + 31) & ~int64_t(31), row_blocks = (M + rows - 1) / rows;
  const int64_t fair = num_threads == 1 || MILLPOND_AMX ? panels : panels * row_blocks / (num_threads * kPieces);
  const int64_t each = max64(1, min64(min64(8, fair), ctx.cache_bytes / 2 / bytes));
  return {rows, each, row_blocks, (panels + each - 1) / each};
}

// A thread knows its next piece before it starts one, and its first piece of the next product before it ends this one.
static inline void aim_ahead(const Op& op, const Context& ctx, const Cut& cut, int64_t piece, int64_t next, int64_t steps, int thread,
                             int num_threads, Prefetcher& ahead) {
  ahead = Prefetcher();
  const int64_t panels = ceil32(op.n[0]) / 32;
  if (next < cut.groups * cut.row_blocks) {
    const int64_t start = next / cut.row_blocks * cut.panels;
    if (next / cut.row_blocks == piece / cut.row_blocks) return;  // the same weights
    ahead.aim((const char*)op.p[0] + start * panel_bytes(op), min64(cut.panels, panels - start) * panel_bytes(op), steps);
  } else if (ctx.next_linear) {
    const Op& coming = *ctx.next_linear;
    const Cut then = cut_linear(coming, ctx, coming.rows ? ctx.step->L : ctx.step->T, num_threads);
    const int64_t start = thread / then.row_blocks * then.panels, all = ceil32(coming.n[0]) / 32;
    if (start < all) ahead.aim((const char*)coming.p[0] + start * panel_bytes(coming), min64(then.panels, all - start) * panel_bytes(coming), steps);
  }
}

// How often so many rows go through a panel.
template <typename Act>
static inline int64_t passes_over_weights(int64_t rows) {
  const int64_t at_once = MILLPOND_AMX && sizeof(Act) == 2 ? 32 : kRowsOfBlock;
  return max64(1, (rows + at_once - 1) / at_once);
}

template <typename Act, int kEpilogue>
static void run_linear_as(const Op& op, const Context& ctx, int thread, int num_threads) {
  const int64_t M = op.rows ? ctx.step->L : ctx.step->T;
  const int64_t panels = ceil32(op.n[0]) / 32, KT = ceil32(op.n[1]) / 32;
  const Cut cut = cut_linear(op, ctx, M, num_threads);
  const int64_t pieces = cut.groups * cut.row_blocks;
  Side<Act, kEpilogue, 0> side{{}, {op, ctx, nullptr}};
  if (kEpilogue == kStoreF32 && (op.flags & kFindPeaks)) clear_peaks(ctx.peaks, M);
  alignas(64) float two[2][32 * 32];
  int64_t turn = 0;
  int64_t piece = thread;
  while (piece < pieces) {
    const int64_t next = num_threads + ctx.counter->fetch_add(1, std::memory_order_relaxed);
    const int64_t p0 = piece / cut.row_blocks * cut.panels, p1 = min64(panels, p0 + cut.panels);
    const int64_t m0 = piece % cut.row_blocks * cut.rows, m1 = min64(M, m0 + cut.rows);
    aim_ahead(op, ctx, cut, piece, next, (p1 - p0) * KT * passes_over_weights<Act>(m1 - m0), thread, num_threads, side.ahead);
#if MILLPOND_AMX
    if (m1 - m0 > 32 && sizeof(Act) == 2) {
      panels_amx(op, ctx, m0, m1, p0, p1, side);
      piece = next;
      continue;
    }
#endif
    for (int64_t p = p0; p < p1; ++p) panel_of_rows(op, ctx, m0, m1, p, two, turn, side);
    piece = next;
  }
  side.pending.flush();
}

template <typename Act>
static void run_linear_of(const Op& op, const Context& ctx, int thread, int num_threads) {
  choose_epilogue(op.n[3], [&](auto epilogue) { run_linear_as<Act, decltype(epilogue)::value>(op, ctx, thread, num_threads); });
}

static void run_linear_float(const Op& op, const Context& ctx, int thread, int num_threads) {
  if (ctx.act_dtype == kF32) run_linear_of<float>(op, ctx, thread, num_threads);
  else run_linear_of<bf16>(op, ctx, thread, num_threads);
}

}  // namespace MILLPOND_ISA
}  // namespace millpond
