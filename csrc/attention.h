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

// A chunk's blocks of one kv head. Block i of the chunk holds tokens [32 i, 32 i + 32) of it.
template <typename Act>
struct ChunkView {
  const Act* k[kChunk / 32];
  const Act* v[kChunk / 32];
  int64_t count;      // blocks of 32 tokens
  int64_t size;       // tokens in a cache block, the row length of K
};

// Decode reads each block once, from memory, and has little to compute: the next chunk's lines are asked for while this one
// is multiplied, a line of every block in turn (see Prefetcher for why in turn).
template <typename Act>
struct ChunkPrefetcher {
  ChunkView<Act> chunk;
  int64_t lines = 0, lines_each = 0, done = 0;

  void aim(const ChunkView<Act>& next, int64_t D, int64_t steps) {
    chunk = next;
    lines = chunk.count ? D * int64_t(sizeof(Act)) / 2 : 0;  // of a block's keys, and of its values
    lines_each = (lines + steps - 1) / steps;
    done = 0;
  }
  inline void step() {
    const int64_t last = min64(lines, done + lines_each), row_bytes = chunk.size * 4;
    for (; done < last; ++done)
      for (int64_t i = 0; i < chunk.count; ++i) {
        _mm_prefetch((const char*)chunk.k[i] + done / 2 * row_bytes + done % 2 * 64, _MM_HINT_T1);
        _mm_prefetch((const char*)chunk.v[i] + done * 64, _MM_HINT_T1);
      }
  }
};

// s[rows][kChunk] = q . K of the chunk
static void scores(const float* q, int64_t rows, int64_t D, const ChunkView<float>& chunk, ChunkPrefetcher<float>& ahead, float* s) {
  for (int64_t i = 0; i < chunk.count; ++i) {
    for (int64_t d = 0; d < D; d += 32) ahead.step();
    for (int64_t r = 0; r < rows; ++r) {
      v16 a = vset(0.0f), b = vset(0.0f);
      const float* k = chunk.k[i];
      for (int64_t d = 0; d < D; ++d, k += chunk.size) {
        v16 x = vset(q[r * D + d]);
        a = vfma(x, vload(k), a);
        b = vfma(x, vload(k + 16), b);
      }
      vstore(s + r * kChunk + i * 32, a);
      vstore(s + r * kChunk + i * 32 + 16, b);
    }
  }
}

// o[rows][D] += p[rows][kChunk] . V of the chunk
static void mix(const float* p, int64_t rows, int64_t D, const ChunkView<float>& chunk, ChunkPrefetcher<float>& ahead, float* o) {
  for (int64_t i = 0; i < chunk.count * D; i += 32) ahead.step();
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t d = 0; d < D; d += 32) {
      v16 a = vload(o + r * D + d), b = vload(o + r * D + d + 16);
      for (int64_t i = 0; i < chunk.count; ++i) {
        const float* v = chunk.v[i] + d;
        for (int64_t t = 0; t < 32; ++t, v += D) {
          v16 x = vset(p[r * kChunk + i * 32 + t]);
          a = vfma(x, vload(v), a);
          b = vfma(x, vload(v + 16), b);
        }
      }
      vstore(o + r * D + d, a);
      vstore(o + r * D + d + 16, b);
    }
}

#if MILLPOND_AMX
template <bool kTwoRows>
static inline void scores_amx(const bf16* q, int64_t D, const ChunkView<bf16>& chunk, ChunkPrefetcher<bf16>& ahead, float* s) {
  for (int64_t i = 0; i < chunk.count; ++i) {
    _tile_zero(0);
    _tile_zero(1);
    if (kTwoRows) {
      _tile_zero(2);
      _tile_zero(3);
    }
    for (int64_t d = 0; d < D; d += 32) {
      ahead.step();
      _tile_loadd(4, q + d, D * 2);
      _tile_loadd(6, chunk.k[i] + d * chunk.size, chunk.size * 4);
      _tile_loadd(7, chunk.k[i] + d * chunk.size + 32, chunk.size * 4);
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(1, 4, 7);
      if (kTwoRows) {
        _tile_loadd(5, q + 16 * D + d, D * 2);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
      }
    }
    _tile_stored(0, s + i * 32, kChunk * 4);
    _tile_stored(1, s + i * 32 + 16, kChunk * 4);
    if (kTwoRows) {
      _tile_stored(2, s + 16 * kChunk + i * 32, kChunk * 4);
      _tile_stored(3, s + 16 * kChunk + i * 32 + 16, kChunk * 4);
    }
  }
}

template <bool kTwoRows>
static inline void mix_amx(const bf16* p, int64_t D, const ChunkView<bf16>& chunk, ChunkPrefetcher<bf16>& ahead, float* o) {
  for (int64_t d = 0; d < D; d += 32) {
    _tile_loadd(0, o + d, D * 4);
    _tile_loadd(1, o + d + 16, D * 4);
    if (kTwoRows) {
      _tile_loadd(2, o + 16 * D + d, D * 4);
      _tile_loadd(3, o + 16 * D + d + 16, D * 4);
    }
    for (int64_t i = 0; i < chunk.count; ++i) {
      ahead.step();
      _tile_loadd(4, p + i * 32, kChunk * 2);
      _tile_loadd(6, chunk.v[i] + d * 2, D * 4);
      _tile_loadd(7, chunk.v[i] + d * 2 + 32, D * 4);
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(1, 4, 7);
      if (kTwoRows) {
        _tile_loadd(5, p + 16 * kChunk + i * 32, kChunk * 2);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
      }
    }
    _tile_stored(0, o + d, D * 4);
    _tile_stored(1, o + d + 16, D * 4);
    if (kTwoRows) {
      _tile_stored(2, o + 16 * D + d, D * 4);
      _tile_stored(3, o + 16 * D + d + 16, D * 4);
    }
  }
}

static void scores(const bf16* q, int64_t rows, int64_t D, const ChunkView<bf16>& chunk, ChunkPrefetcher<bf16>& ahead, float* s) {
  if (rows > 16) scores_amx<true>(q, D, chunk, ahead, s);
  else scores_amx<false>(q, D, chunk, ahead, s);
}
static void mix(const bf16* p, int64_t rows, int64_t D, const ChunkView<bf16>& chunk, ChunkPrefetcher<bf16>& ahead, float* o) {
  if (rows > 16) mix_amx<true>(p, D, chunk, ahead, o);
  else mix_amx<false>(p, D, chunk, ahead, o);
}
#else
// a, b += sum over pairs of x[pair] . w[pair][32 columns]; rows of w are `stride` pairs apart.
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

static void scores(const bf16* q, int64_t rows, int64_t D, const ChunkView<bf16>& chunk, ChunkPrefetcher<bf16>& ahead, float* s) {
  for (int64_t i = 0; i < chunk.count; ++i) {
    for (int64_t d = 0; d < D; d += 32) ahead.step();
    for (int64_t r = 0; r < rows; ++r) {
      v16 a = vset(0.0f), b = vset(0.0f);
      pair_dot(q + r * D, chunk.k[i], D / 2, chunk.size, a, b);
      vstore(s + r * kChunk + i * 32, a);
      vstore(s + r * kChunk + i * 32 + 16, b);
    }
  }
}
static void mix(const bf16* p, int64_t rows, int64_t D, const ChunkView<bf16>& chunk, ChunkPrefetcher<bf16>& ahead, float* o) {
  for (int64_t i = 0; i < chunk.count * D; i += 32) ahead.step();
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t d = 0; d < D; d += 32) {
      v16 a = vload(o + r * D + d), b = vload(o + r * D + d + 16);
      for (int64_t i = 0; i < chunk.count; ++i) pair_dot(p + r * kChunk + i * 32, chunk.v[i] + d * 2, 16, D, a, b);
      vstore(o + r * D + d, a);
      vstore(o + r * D + d + 16, b);
    }
}
#endif

struct RowView {
  int64_t position;    // of the query token
  int64_t first_key;   // lowest position it may see
  float slope;         // ALiBi, 0 for none
};

static inline v16 exponential(const float*, v16 x, v16 max) { return vexp(x - max); }
static inline v16 exponential(const bf16*, v16 x, v16 max) { return vexp2_coarse((x - max) * vset(1.44269504f)); }

// Adds the row's ALiBi bias and hides what it must not see; leaves a plain row untouched.
static inline void mask_row(const RowView& row, int64_t chunk_start, int64_t width, float* s) {
  const float kNegative = -__builtin_inff();
  const int64_t low = row.first_key - chunk_start, high = row.position - chunk_start + 1;
  width = min64(width, (high + 15) & ~int64_t(15));
  static const float lane[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  for (int64_t i = 0; i < width; i += 16) {
    v16 x = vload(s + i);
    if (row.slope != 0.0f) x = vfma(vload(lane) + vset(float(chunk_start + i - row.position)), vset(row.slope), x);
    if (high < i + 16) x = vselect_below(high - i, x, vset(kNegative));
    if (low > i) x = vselect_below(low - i, vset(kNegative), x);
    vstore(s + i, x);
  }
}

// Exponentiates one row of a chunk, rescales its output, and updates the running maximum and sum.
template <typename Act>
static inline void softmax_row(const RowView& row, int64_t chunk_start, int64_t width, float* s, Act* p, float* o, int64_t D, float& max, float& sum) {
  const float kNegative = -__builtin_inff();
  if (row.slope != 0.0f || row.first_key > chunk_start || row.position < chunk_start + width - 1) mask_row(row, chunk_start, width, s);
  // What lies behind the row's own position is not looked at: neither its score nor its exponential.
  const int64_t low = row.first_key - chunk_start, high = row.position - chunk_start + 1, used = min64(width, (high + 15) & ~int64_t(15));
  v16 best = vset(kNegative);
  for (int64_t i = 0; i < used; i += 16) best = vmax(best, vload(s + i));
  const float row_max = vhmax(best);
  const float new_max = row_max > max ? row_max : max;
  if (new_max == kNegative) {  // nothing to see yet
    for (int64_t i = 0; i < width; i += 16) vstore_act<Act>(p + i, vset(0.0f));
    return;
  }
  // A hidden score is -inf and its exponential, clamped, some 1e-38: it must be 0, since its value may be anything.
  v16 total = vset(0.0f), top = vset(new_max);
  for (int64_t i = 0; i < used; i += 16) {
    v16 e = exponential(p, vload(s + i), top);
    if (high < i + 16) e = vselect_below(high - i, e, vset(0.0f));
    if (low > i) e = vselect_below(low - i, vset(0.0f), e);
    total = total + e;
    vstore_act<Act>(p + i, e);
  }
  for (int64_t i = max64(used, 0); i < width; i += 16) vstore_act<Act>(p + i, vset(0.0f));
  if (new_max > max) {
    if (max != kNegative) {
      float change[16];
      vstore(change, vexp(vset(max - new_max)));
      sum *= change[0];
      for (int64_t d = 0; d < D; d += 16) vstore(o + d, vload(o + d) * vset(change[0]));
    }
    max = new_max;
  }
  sum += vsum(total);
}

// One piece of work: a tile of rows of one sequence and kv head, and the keys it may see.
struct TileWork {
  int64_t b, g, tile;      // b < 0: none
  int64_t row0, rows;      // of the sequence's (token, head) rows
  int64_t first_key, end;  // multiple of kChunk; one past the last row's position
};

static inline TileWork find_work(const Op& op, const Context& ctx, int64_t piece) {
  const Step& step = *ctx.step;
  const int64_t G = op.n[1], heads = op.n[0] / G, window = op.n[3], tiles = ctx.tile_start[step.B];
  if (piece >= tiles * G) return {-1, 0, 0, 0, 0, 0, 0};
  const int64_t tile = tiles - 1 - piece / G;  // a sequence's last tiles see the most keys: first
  int64_t low = 0, high = step.B - 1;
  while (low < high) {
    const int64_t middle = (low + high + 1) / 2;
    if (ctx.tile_start[middle] <= tile) low = middle;
    else high = middle - 1;
  }
  TileWork work{low, piece % G, tile - ctx.tile_start[low], 0, 0, 0, 0};
  const int64_t query0 = step.query_start[low], queries = step.query_start[low + 1] - query0;
  work.row0 = work.tile * kTileRows;
  work.rows = min64(kTileRows, queries * heads - work.row0);
  const int64_t lowest = step.positions[query0 + work.row0 / heads];
  work.first_key = window > 0 ? max64(0, lowest - window + 1) / kChunk * kChunk : 0;
  work.end = step.positions[query0 + (work.row0 + work.rows - 1) / heads] + 1;
  return work;
}

template <typename Act>
static inline ChunkView<Act> view_chunk(const Op& op, const Step& step, const TileWork& work, int64_t start) {
  const int64_t G = op.n[1], D = op.n[2], size = op.n[4];
  const int32_t* table = step.block_tables + work.b * step.max_blocks;
  ChunkView<Act> chunk;
  chunk.count = start < work.end ? (min64(kChunk, work.end - start) + 31) / 32 : 0;
  chunk.size = size;
  for (int64_t i = 0; i < chunk.count; ++i) {
    const int64_t place = start + i * 32, base = (table[place / size] * G + work.g) * size * D;
    chunk.k[i] = (const Act*)op.p[3] + base + place % size * (sizeof(Act) == 2 ? 2 : 1);
    chunk.v[i] = (const Act*)op.p[4] + base + place % size * D;
  }
  return chunk;
}

// `next` is what this thread does after `work`; its first keys are fetched at the end of this.
template <typename Act>
static void attention_tile(const Op& op, const Context& ctx, const TileWork& work, const TileWork& next) {
  const Step& step = *ctx.step;
  const Buffer &in = ctx.buffers[op.in], &out = ctx.buffers[op.out];
  const int64_t H = op.n[0], G = op.n[1], D = op.n[2], window = op.n[3], heads = H / G;
  const int64_t query0 = step.query_start[work.b], rows = work.rows, padded = (rows + 15) & ~int64_t(15);
  const float* slopes = (const float*)op.p[0];
  AttentionScratch<Act>& w = *(AttentionScratch<Act>*)ctx.scratch;
  RowView view[kTileRows];
  for (int64_t r = 0; r < rows; ++r) {
    int64_t token = query0 + (work.row0 + r) / heads, head = work.g * heads + (work.row0 + r) % heads;
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
  ChunkView<Act> chunk = view_chunk<Act>(op, step, work, work.first_key);
  ChunkPrefetcher<Act> ahead;
  for (int64_t start = work.first_key; start < work.end; start += kChunk) {
    const int64_t width = chunk.count * 32;
    ChunkView<Act> coming = view_chunk<Act>(op, step, work, start + kChunk);
    if (rows <= 16) {  // a full tile computes longer than its keys take to come
      const ChunkView<Act> wanted = coming.count || next.b < 0 ? coming : view_chunk<Act>(op, step, next, next.first_key);
      ahead.aim(wanted, D, chunk.count * D / 16);
    }
    scores(w.q, padded, D, chunk, ahead, w.s);
    for (int64_t r = 0; r < rows; ++r)
      softmax_row<Act>(view[r], start, width, w.s + r * kChunk, w.p + r * kChunk, w.o + r * D, D, w.max[r], w.sum[r]);
    mix(w.p, padded, D, chunk, ahead, w.o);
    chunk = coming;
  }
  for (int64_t r = 0; r < rows; ++r) {
    int64_t token = query0 + (work.row0 + r) / heads, head = work.g * heads + (work.row0 + r) % heads;
    Act* y = (Act*)out.data + token * out.stride + head * D;
    v16 inverse = vset(1.0f / w.sum[r]);
    for (int64_t d = 0; d < D; d += 16) vstore_act<Act>(y + d, vload(w.o + r * D + d) * inverse);
  }
}

static void run_attention(const Op& op, const Context& ctx, int thread, int num_threads) {
  TileWork work = find_work(op, ctx, thread);
  while (work.b >= 0) {
    const TileWork next = find_work(op, ctx, num_threads + ctx.counter->fetch_add(1, std::memory_order_relaxed));
    if (ctx.act_dtype == kF32) attention_tile<float>(op, ctx, work, next);
    else attention_tile<bf16>(op, ctx, work, next);
    work = next;
  }
}

}  // namespace MILLPOND_ISA
}  // namespace millpond
