// paged attention: causal, grouped heads, sliding window, ALiBi; decode rows and prefill rows by one path.
//
// A tile is up to 32 rows of one sequence and kv head, a row being (token, query head of the group), so decode with grouped heads
// fills matrix rows too. Keys are read in chunks of 128 tokens at absolute positions with an online softmax (Milakov and
// Gimelshein 2018; Dao et al. 2022), so a row's result depends on its own sequence alone: not on the batch, not on where
// prefill was cut. The cache is stored in the order the matrix units want (elementwise.h), nothing is transposed here.
#pragma once
#include "gemm.h"

namespace millpond {
namespace MILLPOND_ISA {

constexpr int kChunk = 128;     // tokens
constexpr int kMaxHeadDim = 256;

template <typename Act>
struct AttentionScratch {
  alignas(64) Act q[kTileRows * kMaxHeadDim];
  alignas(64) Act p[kTileRows * kChunk];
  alignas(64) float s[kTileRows * kChunk];
  alignas(64) float o[kTileRows * kMaxHeadDim];
  float max[kTileRows], sum[kTileRows];
};

// s[rows][32 columns of chunk] = q . K for 32 tokens of a block, starting at token `offset` of it.
static void scores(const float* q, int64_t rows, int64_t D, const float* k_block, int64_t size, int64_t offset, float* s) {
  for (int64_t r = 0; r < rows; ++r) {
    v16 a = vset(0.0f), b = vset(0.0f);
    const float* k = k_block + offset;
    for (int64_t d = 0; d < D; ++d, k += size) {
      v16 x = vset(q[r * D + d]);
      a = vfma(x, vload(k), a);
      b = vfma(x, vload(k + 16), b);
    }
    vstore(s + r * kChunk, a);
    vstore(s + r * kChunk + 16, b);
  }
}

// o[rows][D] += p[rows][32 of chunk] . V for 32 tokens of a block.
static void mix(const float* p, int64_t rows, int64_t D, const float* v_block, int64_t, int64_t offset, float* o) {
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t d = 0; d < D; d += 32) {
      v16 a = vload(o + r * D + d), b = vload(o + r * D + d + 16);
      const float* v = v_block + offset * D + d;
      for (int64_t t = 0; t < 32; ++t, v += D) {
        v16 x = vset(p[r * kChunk + t]);
        a = vfma(x, vload(v), a);
        b = vfma(x, vload(v + 16), b);
      }
      vstore(o + r * D + d, a);
      vstore(o + r * D + d + 16, b);
    }
}

// acc[0..15], acc[16..31] += sum over pairs of x[pair] . w[pair][32 columns]; rows of w are `stride` pairs apart.
static inline void pair_dot(const bf16* x, const bf16* w, int64_t pairs, int64_t stride, v16& a, v16& b) {
  for (int64_t i = 0; i < pairs; ++i, w += stride * 2) {
#if MILLPOND_BF16
    int32_t pair;
    memcpy(&pair, x + i * 2, 4);
    __m512bh xs = (__m512bh)_mm512_set1_epi32(pair);
    a.a = _mm512_dpbf16_ps(a.a, xs, (__m512bh)_mm512_loadu_si512(w));
    b.a = _mm512_dpbf16_ps(b.a, xs, (__m512bh)_mm512_loadu_si512(w + 32));
#else
    v16 x0 = vset(bf16_to_float(x[i * 2])), x1 = vset(bf16_to_float(x[i * 2 + 1])), first, second;
    vload_pairs(w, first, second);
    a = vfma(x1, second, vfma(x0, first, a));
    vload_pairs(w + 32, first, second);
    b = vfma(x1, second, vfma(x0, first, b));
#endif
  }
}

static void scores(const bf16* q, int64_t rows, int64_t D, const bf16* k_block, int64_t size, int64_t offset, float* s) {
  const bf16* k = k_block + offset * 2;
#if MILLPOND_AMX
  for (int64_t r = 0; r < rows; r += 16) {
    _tile_zero(0);
    _tile_zero(1);
    for (int64_t d = 0; d < D; d += 32) {
      _tile_loadd(4, q + r * D + d, D * 2);
      _tile_loadd(6, k + d * size, size * 4);
      _tile_loadd(7, k + d * size + 32, size * 4);
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(1, 4, 7);
    }
    _tile_stored(0, s + r * kChunk, kChunk * 4);
    _tile_stored(1, s + r * kChunk + 16, kChunk * 4);
  }
#else
  for (int64_t r = 0; r < rows; ++r) {
    v16 a = vset(0.0f), b = vset(0.0f);
    pair_dot(q + r * D, k, D / 2, size, a, b);
    vstore(s + r * kChunk, a);
    vstore(s + r * kChunk + 16, b);
  }
#endif
}

static void mix(const bf16* p, int64_t rows, int64_t D, const bf16* v_block, int64_t, int64_t offset, float* o) {
  const bf16* v = v_block + offset * D;
#if MILLPOND_AMX
  for (int64_t r = 0; r < rows; r += 16) {
    _tile_loadd(4, p + r * kChunk, kChunk * 2);
    for (int64_t d = 0; d < D; d += 32) {
      _tile_loadd(0, o + r * D + d, D * 4);
      _tile_loadd(1, o + r * D + d + 16, D * 4);
      _tile_loadd(6, v + d * 2, D * 4);
      _tile_loadd(7, v + d * 2 + 32, D * 4);
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(1, 4, 7);
      _tile_stored(0, o + r * D + d, D * 4);
      _tile_stored(1, o + r * D + d + 16, D * 4);
    }
  }
#else
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t d = 0; d < D; d += 32) {
      v16 a = vload(o + r * D + d), b = vload(o + r * D + d + 16);
      pair_dot(p + r * kChunk, v + d * 2, 16, D, a, b);
      vstore(o + r * D + d, a);
      vstore(o + r * D + d + 16, b);
    }
#endif
}

struct RowView {
  int64_t position;    // of the query token
  int64_t first_key;   // lowest position it may see
  float slope;         // ALiBi, 0 for none
};

// Masks and exponentiates one row of a chunk, rescales its output, and updates the running maximum and sum.
template <typename Act>
static inline void softmax_row(const RowView& row, int64_t chunk_start, int64_t width, float* s, Act* p, float* o, int64_t D, float& max, float& sum) {
  const float kNegative = -__builtin_inff();
  const int64_t low = row.first_key - chunk_start, high = row.position - chunk_start + 1;
  v16 best = vset(kNegative);
  for (int64_t i = 0; i < width; i += 16) {
    v16 x = vload(s + i);
    if (row.slope != 0.0f) {
      static const float lane[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
      x = vfma(vload(lane) + vset(float(chunk_start + i - row.position)), vset(row.slope), x);
    }
    if (high < i + 16) x = vselect_below(high - i, x, vset(kNegative));
    if (low > i) x = vselect_below(low - i, vset(kNegative), x);
    vstore(s + i, x);
    best = vmax(best, x);
  }
  const float row_max = vhmax(best);
  const float new_max = row_max > max ? row_max : max;
  if (new_max == kNegative) {  // nothing to see yet
    for (int64_t i = 0; i < width; i += 16) vstore_act<Act>(p + i, vset(0.0f));
    return;
  }
  v16 total = vset(0.0f);
  for (int64_t i = 0; i < width; i += 16) {
    v16 e = vexp(vload(s + i) - vset(new_max));
    if (high < i + 16) e = vselect_below(high - i, e, vset(0.0f));
    if (low > i) e = vselect_below(low - i, vset(0.0f), e);
    total = total + e;
    vstore_act<Act>(p + i, e);
  }
  if (new_max > max) {
    float change[16];
    vstore(change, vexp(vset(max - new_max)));
    float scale = max == kNegative ? 0.0f : change[0];
    sum *= scale;
    for (int64_t d = 0; d < D; d += 16) vstore(o + d, vload(o + d) * vset(scale));
    max = new_max;
  }
  sum += vsum(total);
}

template <typename Act>
static void attention_tile(const Op& op, const Context& ctx, int64_t b, int64_t g, int64_t tile) {
  const Step& step = *ctx.step;
  const Buffer &in = ctx.buffers[op.in], &out = ctx.buffers[op.out];
  const int64_t H = op.n[0], G = op.n[1], D = op.n[2], window = op.n[3], size = op.n[4], heads = H / G;
  const int64_t query0 = step.query_start[b], queries = step.query_start[b + 1] - query0;
  const int64_t row0 = tile * kTileRows, rows = min64(kTileRows, queries * heads - row0);
  const int64_t padded = (rows + 15) & ~int64_t(15);
  const float* slopes = (const float*)op.p[0];
  AttentionScratch<Act>& w = *(AttentionScratch<Act>*)ctx.scratch;
  RowView view[kTileRows];
  for (int64_t r = 0; r < rows; ++r) {
    int64_t token = query0 + (row0 + r) / heads, head = g * heads + (row0 + r) % heads;
    memcpy(w.q + r * D, (const Act*)in.data + token * in.stride + head * D, D * sizeof(Act));
    int64_t position = step.positions[token];
    view[r] = {position, window > 0 ? max64(0, position - window + 1) : 0, slopes ? slopes[head] : 0.0f};
    w.max[r] = -__builtin_inff();
    w.sum[r] = 0.0f;
  }
  if (padded > rows) {
    memset(w.q + rows * D, 0, (padded - rows) * D * sizeof(Act));
    memset(w.p + rows * kChunk, 0, (padded - rows) * kChunk * sizeof(Act));
  }
  memset(w.o, 0, padded * D * sizeof(float));
  const int64_t end = view[rows - 1].position + 1;
  const int32_t* table = step.block_tables + b * step.max_blocks;
  for (int64_t start = view[0].first_key / kChunk * kChunk; start < end; start += kChunk) {
    const int64_t width = min64(kChunk, (end - start + 31) & ~int64_t(31));
    for (int64_t i = 0; i < width; i += 32) {
      const int64_t base = (table[(start + i) / size] * G + g) * size * D;
      scores(w.q, padded, D, (const Act*)op.p[3] + base, size, (start + i) % size, w.s + i);
    }
    for (int64_t r = 0; r < rows; ++r)
      softmax_row<Act>(view[r], start, width, w.s + r * kChunk, w.p + r * kChunk, w.o + r * D, D, w.max[r], w.sum[r]);
    for (int64_t i = 0; i < width; i += 32) {
      const int64_t base = (table[(start + i) / size] * G + g) * size * D;
      mix(w.p + i, padded, D, (const Act*)op.p[4] + base, size, (start + i) % size, w.o);
    }
  }
  for (int64_t r = 0; r < rows; ++r) {
    int64_t token = query0 + (row0 + r) / heads, head = g * heads + (row0 + r) % heads;
    Act* y = (Act*)out.data + token * out.stride + head * D;
    v16 inverse = vset(1.0f / w.sum[r]);
    for (int64_t d = 0; d < D; d += 16) vstore_act<Act>(y + d, vload(w.o + r * D + d) * inverse);
  }
}

static void run_attention(const Op& op, const Context& ctx, int, int) {
  const int64_t B = ctx.step->B, G = op.n[1];
  const int64_t tiles = ctx.tile_start[B];
  for (;;) {
    int64_t i = ctx.counter->fetch_add(1, std::memory_order_relaxed);
    if (i >= tiles * G) break;
    int64_t tile = tiles - 1 - i / G;  // a sequence's last tiles see the most keys: first
    int64_t low = 0, high = B - 1;
    while (low < high) {
      int64_t middle = (low + high + 1) / 2;
      if (ctx.tile_start[middle] <= tile) low = middle;
      else high = middle - 1;
    }
    if (ctx.act_dtype == kF32) attention_tile<float>(op, ctx, low, i % G, tile - ctx.tile_start[low]);
    else attention_tile<bf16>(op, ctx, low, i % G, tile - ctx.tile_start[low]);
  }
}

}  // namespace MILLPOND_ISA
}  // namespace millpond
