// linear: out[M,N] = epilogue(A[M,K] . W[N,K]^T + bias), weights packed in panels of 32 outputs.
//
// Panel layouts: f32 [K][32]; bf16 [K/32][2][16][16][2] (two AMX B tiles a step of 32 k, pairs of k innermost, which is
// also what AVX512-BF16 wants); int8 the bf16 order with a scale per output. Every element of the result is summed over k
// in the same order whatever M is, so a row does not depend on the rows beside it.
#pragma once
#include "program.h"
#include "simd.h"

namespace millpond {
namespace MILLPOND_ISA {

#if MILLPOND_AMX
struct alignas(64) TileConfig {
  uint8_t palette, start_row, reserved[14];
  uint16_t colsb[16];
  uint8_t rows[16];
};
static inline void load_tile_config() {
  TileConfig config;
  memset(&config, 0, sizeof config);
  config.palette = 1;
  for (int i = 0; i < 8; ++i) config.colsb[i] = 64, config.rows[i] = 16;
  // NOTE: not _tile_loadconfig: gcc 12 declares its operand as 8 bytes and drops the stores above.
  asm volatile("ldtilecfg %0" ::"m"(config));
}
#endif

// Applies scale, bias, activation and stores rows [m0, m0+rows) of one panel from c[rows][32].
template <typename Act>
static void store_panel(const Op& op, const Context& ctx, const float* c, int64_t m0, int64_t rows, int64_t panel) {
  const Buffer& out = ctx.buffers[op.out];
  const float* scale = op.n[2] == kI8 ? (const float*)op.p[1] + panel * 32 : nullptr;
  const float* bias = op.p[2] ? (const float*)op.p[2] + panel * 32 : nullptr;
  for (int64_t r = 0; r < rows; ++r) {
    v16 x = vload(c + r * 32), y = vload(c + r * 32 + 16);
    if (scale) x = x * vload(scale), y = y * vload(scale + 16);
    if (bias) x = x + vload(bias), y = y + vload(bias + 16);
    int64_t row = (m0 + r) * out.stride;
    float* f = (float*)out.data + row + panel * 32;
    Act* a = (Act*)out.data + row + panel * 32;
    Act* half = (Act*)out.data + row + panel * 16;
    switch (op.n[3]) {
      case kStoreF32: vstore(f, x), vstore(f + 16, y); break;
      case kStoreAct: vstore_act<Act>(a, x), vstore_act<Act>(a + 16, y); break;
      case kAddF32: vstore(f, vload(f) + x), vstore(f + 16, vload(f + 16) + y); break;
      case kSiluMul: vstore_act<Act>(half, vsilu(x) * y); break;
      case kGeluTanhMul: vstore_act<Act>(half, vgelu_tanh(x) * y); break;
      case kGeluMul: vstore_act<Act>(half, vgelu(x) * y); break;
      case kGeluTanh: vstore_act<Act>(a, vgelu_tanh(x)), vstore_act<Act>(a + 16, vgelu_tanh(y)); break;
      case kGelu: vstore_act<Act>(a, vgelu(x)), vstore_act<Act>(a + 16, vgelu(y)); break;
      case kSilu: vstore_act<Act>(a, vsilu(x)), vstore_act<Act>(a + 16, vsilu(y)); break;
    }
  }
}

#if MILLPOND_AVX512
constexpr int kRowsOfBlock = 8;
#else
constexpr int kRowsOfBlock = 2;
#endif

template <int R>
static void block_f32(const float* a, int64_t lda, const float* w, int64_t K, float* c) {
  v16 acc[R][2];
  for (int r = 0; r < R; ++r) acc[r][0] = acc[r][1] = vset(0.0f);
  for (int64_t k = 0; k < K; ++k) {
    v16 w0 = vload(w + k * 32), w1 = vload(w + k * 32 + 16);
    for (int r = 0; r < R; ++r) {
      v16 x = vset(a[r * lda + k]);
      acc[r][0] = vfma(x, w0, acc[r][0]);
      acc[r][1] = vfma(x, w1, acc[r][1]);
    }
  }
  for (int r = 0; r < R; ++r) vstore(c + r * 32, acc[r][0]), vstore(c + r * 32 + 16, acc[r][1]);
}

template <int R>
static void block_bf16(const bf16* a, int64_t lda, const bf16* w, int64_t KT, float* c) {
  v16 acc[R][2];
  for (int r = 0; r < R; ++r) acc[r][0] = acc[r][1] = vset(0.0f);
  for (int64_t t = 0; t < KT; ++t, w += 1024) {
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

// int8 weights -> bf16, `count` of them in the same order; every int8 is exact in bf16.
static void widen_i8(const int8_t* w, bf16* out, int64_t count) {
  for (int64_t i = 0; i < count; i += 32) {
#if MILLPOND_BF16
    __m512 lo = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)(w + i))));
    __m512 hi = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)(w + i + 16))));
    _mm512_storeu_si512(out + i, (__m512i)_mm512_cvtne2ps_pbh(hi, lo));
#else
    vstore_bf16(out + i, vload_i8(w + i));
    vstore_bf16(out + i + 16, vload_i8(w + i + 16));
#endif
  }
}

// Fetches a range of memory into the second-level cache, a little at each step of the work at hand. Eight places of the range
// advance together: one stream of software prefetches is bounded by the first-level fill buffers (about 10 GB/s a core), several
// streams set the hardware prefetcher to work on as many pages and reach what the memory gives.
struct Prefetcher {
  static constexpr int64_t kStreams = 8;
  const char* base = nullptr;
  int64_t stream_lines = 0, lines_each = 0, done = 0;

  void aim(const void* data, int64_t bytes, int64_t steps) {
    base = (const char*)data;
    stream_lines = bytes / 64 / kStreams;
    lines_each = (stream_lines + steps - 1) / steps;
    done = 0;
  }
  inline void step() {
    const int64_t last = min64(stream_lines, done + lines_each);
    for (; done < last; ++done)
      for (int64_t v = 0; v < kStreams; ++v) _mm_prefetch(base + (v * stream_lines + done) * 64, _MM_HINT_T1);
  }
};

#if MILLPOND_AMX
// c[32][32] (or [16][32]) = A . panel. `widen` is a scratch for int8 weights, which are widened eight k-steps at a time.
template <bool kTwoRows, bool kInt8>
static inline void block_amx(const bf16* a, int64_t lda, const void* w, int64_t KT, float* c, bf16* widen, Prefetcher& ahead) {
  const bf16* b = (const bf16*)w;
  const int64_t row_bytes = lda * 2;
  _tile_zero(0);
  _tile_zero(1);
  if (kTwoRows) {
    _tile_zero(2);
    _tile_zero(3);
  }
  constexpr int64_t kStepsWidened = 8;
  for (int64_t t0 = 0; t0 < KT; t0 += kStepsWidened) {
    int64_t t1 = min64(KT, t0 + kStepsWidened);
    const bf16* tiles = b + t0 * 1024;
    if (kInt8) {
      widen_i8((const int8_t*)w + t0 * 1024, widen, (t1 - t0) * 1024);
      tiles = widen;
    }
    for (int64_t t = t0; t < t1; ++t, tiles += 1024) {
      ahead.step();
      _tile_loadd(4, a + t * 32, row_bytes);
      _tile_loadd(6, tiles, 64);
      _tile_loadd(7, tiles + 512, 64);
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(1, 4, 7);
      if (kTwoRows) {
        _tile_loadd(5, a + 16 * lda + t * 32, row_bytes);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
      }
    }
  }
  _tile_stored(0, c, 128);
  _tile_stored(1, c + 16, 128);
  if (kTwoRows) {
    _tile_stored(2, c + 16 * 32, 128);
    _tile_stored(3, c + 16 * 32 + 16, 128);
  }
}
#endif

// Rows [0, rows) of one panel into c; rows <= 32. A's buffer has 32-row padding, so reading past `rows` is safe.
static void panel_bf16(const bf16* a, int64_t lda, const bf16* w, int64_t KT, int64_t rows, float* c, Prefetcher& ahead) {
#if MILLPOND_AMX
  if (rows > 16) block_amx<true, false>(a, lda, w, KT, c, nullptr, ahead);
  else block_amx<false, false>(a, lda, w, KT, c, nullptr, ahead);
#else
  for (int64_t t = 0; t < KT; ++t) ahead.step();
  for (int64_t r = 0; r < rows;) {
    if (rows - r >= kRowsOfBlock) block_bf16<kRowsOfBlock>(a + r * lda, lda, w, KT, c + r * 32), r += kRowsOfBlock;
    else if (rows - r >= 2) block_bf16<2>(a + r * lda, lda, w, KT, c + r * 32), r += 2;
    else block_bf16<1>(a + r * lda, lda, w, KT, c + r * 32), r += 1;
  }
#endif
}

static void panel_f32(const float* a, int64_t lda, const float* w, int64_t K, int64_t rows, float* c) {
  for (int64_t r = 0; r < rows;) {
    if (rows - r >= kRowsOfBlock) block_f32<kRowsOfBlock>(a + r * lda, lda, w, K, c + r * 32), r += kRowsOfBlock;
    else if (rows - r >= 2) block_f32<2>(a + r * lda, lda, w, K, c + r * 32), r += 2;
    else block_f32<1>(a + r * lda, lda, w, K, c + r * 32), r += 1;
  }
}

template <typename Act>
static void linear_panel(const Op& op, const Context& ctx, int64_t m0, int64_t m1, int64_t panel, Prefetcher& ahead) {
  const Buffer& in = ctx.buffers[op.in];
  const int64_t K = op.n[1], KT = ceil32(K) / 32;
  alignas(64) float c[32 * 32];
  const Act* a = (const Act*)in.data;
  bf16* widened = (bf16*)ctx.scratch;
  const bf16* w = (const bf16*)op.p[0] + panel * KT * 1024;
  const int8_t* w8 = (const int8_t*)op.p[0] + panel * KT * 1024;
  const bool is_int8 = op.n[2] == kI8;
  const bool widen_all = is_int8 && (m1 - m0 > 32 || !MILLPOND_AMX);
  if (widen_all) {
    widen_i8(w8, widened, KT * 1024);
    w = widened;
  }
  for (int64_t m = m0; m < m1; m += 32) {
    int64_t rows = min64(32, m1 - m);
    if (op.n[2] == kF32) {
      for (int64_t t = 0; t < KT; ++t) ahead.step();
      panel_f32((const float*)a + m * in.stride, in.stride, (const float*)op.p[0] + panel * K * 32, K, rows, c);
#if MILLPOND_AMX
    } else if (is_int8 && !widen_all) {
      const bf16* rows_a = (const bf16*)a + m * in.stride;
      if (rows > 16) block_amx<true, true>(rows_a, in.stride, w8, KT, c, widened, ahead);
      else block_amx<false, true>(rows_a, in.stride, w8, KT, c, widened, ahead);
#endif
    } else {
      panel_bf16((const bf16*)a + m * in.stride, in.stride, w, KT, rows, c, ahead);
    }
    store_panel<Act>(op, ctx, c, m, rows, panel);
  }
}

static inline int64_t panel_bytes(const Op& op) {
  const int64_t KT = ceil32(op.n[1]) / 32;
  return op.n[2] == kF32 ? int64_t(op.n[1]) * 128 : KT * (op.n[2] == kBF16 ? 2048 : 1024);
}

// Panels a thread takes at a time: a few shares each, so that threads end together, and no more than the cache can hold twice.
static inline int64_t panels_each(const Op& op, int num_threads) {
  const int64_t panels = ceil32(op.n[0]) / 32, fair = panels / (num_threads * 4), most = (512 << 10) / panel_bytes(op);
  return max64(1, min64(fair, most));
}

static void run_linear(const Op& op, const Context& ctx, int thread, int num_threads) {
  const int64_t M = op.rows ? ctx.step->L : ctx.step->T;
  const int64_t panels = ceil32(op.n[0]) / 32, KT = ceil32(op.n[1]) / 32;
  // Rows of A that stay in the second-level cache while the weights stream by.
  const int64_t row_bytes = ctx.buffers[op.in].stride * (ctx.act_dtype == kF32 ? 4 : 2);
  const int64_t rows_block = max64(64, min64(1024, ((1 << 20) / row_bytes) & ~int64_t(31)));
  const int64_t row_blocks = (M + rows_block - 1) / rows_block;
  const int64_t pieces = panels * row_blocks, grain = panels_each(op, num_threads);
  // A thread knows its next share before it starts one, and its first share of the next product before it ends this one.
  int64_t first = thread * grain;
  while (first < pieces) {
    const int64_t next = num_threads * grain + ctx.counter->fetch_add(int32_t(grain), std::memory_order_relaxed);
    Prefetcher ahead;
    if (next < pieces && row_blocks == 1) {
      ahead.aim((const char*)op.p[0] + next * panel_bytes(op), min64(grain, pieces - next) * panel_bytes(op), grain * KT);
    } else if (next >= pieces && ctx.next_linear) {
      const Op& coming = *ctx.next_linear;
      const int64_t share = panels_each(coming, num_threads), start = thread * share, all = ceil32(coming.n[0]) / 32;
      if (start < all) ahead.aim((const char*)coming.p[0] + start * panel_bytes(coming), min64(share, all - start) * panel_bytes(coming), grain * KT);
    }
    for (int64_t i = first; i < min64(pieces, first + grain); ++i) {
      int64_t m0 = i / panels * rows_block, m1 = min64(M, m0 + rows_block);
      if (ctx.act_dtype == kF32) linear_panel<float>(op, ctx, m0, m1, i % panels, ahead);
      else linear_panel<bf16>(op, ctx, m0, m1, i % panels, ahead);
    }
    first = next;
  }
}

}  // namespace MILLPOND_ISA
}  // namespace millpond
