// paged attention: causal, grouped heads, sliding window, ALiBi; decode rows and prefill rows by one path.
//
// A tile is up to 32 rows of one sequence and kv head, a row being (token, query head of the group), so decode with grouped heads
// fills matrix rows too. Keys are read in chunks of 128 tokens at absolute positions with an online softmax (Milakov and
// Gimelshein 2018; Dao et al. 2022), so a row's result depends on its own sequence alone: not on the batch, not on where
// prefill was cut. The cache is stored in the order the matrix units want (elementwise.h), nothing is transposed here. An int8
// cache is widened 32 tokens at a time; the scale of a key multiplies its column of scores, that of a value its probabilities.
#pragma once
#include "attention_chunk.h"
#include "kv_int8.h"

namespace millpond {
namespace MILLPOND_ISA {

constexpr int kMaxHeadDim = 256;

template <typename Act>
struct AttentionScratch {
  alignas(64) Act q[kTileRows * kMaxHeadDim];
  alignas(64) Act p[kTileRows * kChunk];
  alignas(64) float s[kTileRows * kChunk];
  alignas(64) float o[kTileRows * kMaxHeadDim];
  alignas(64) Act wide[32 * kMaxHeadDim];  // 32 tokens of an int8 cache
  float max[kTileRows], sum[kTileRows];
};

// One chunk's scores of `padded` rows of queries, of which `rows` are real.
template <typename Act>
static inline void chunk_scores(AttentionScratch<Act>& w, int64_t, int64_t padded, int64_t D, const ChunkView<Act>& chunk,
                                ChunkPrefetcher<Act>& ahead) {
  scores(w.q, padded, D, chunk, ahead, w.s);
}
template <typename Act>
static inline void chunk_scores(AttentionScratch<Act>& w, int64_t rows, int64_t padded, int64_t D, const ChunkView<int8_t>& chunk,
                                ChunkPrefetcher<int8_t>& ahead) {
  for (int64_t i = 0; i < chunk.count; ++i) {
    widen_keys(chunk.k[i], D, chunk.size, w.wide);
    scores(w.q, padded, D, ChunkView<Act>{{w.wide}, {}, 1, 32, {}, {}}, ahead, w.s + i * 32);
    const v16 a = vload(chunk.k_scale[i]), b = vload(chunk.k_scale[i] + 16);
    for (float *s = w.s + i * 32, *last = s + rows * kChunk; s < last; s += kChunk) {
      vstore(s, vload(s) * a);
      vstore(s + 16, vload(s + 16) * b);
    }
  }
}
template <typename Act>
static inline void chunk_mix(AttentionScratch<Act>& w, int64_t padded, int64_t D, const ChunkView<Act>& chunk, ChunkPrefetcher<Act>& ahead) {
  mix(w.p, padded, D, chunk, ahead, w.o);
}
template <typename Act>
static inline void chunk_mix(AttentionScratch<Act>& w, int64_t padded, int64_t D, const ChunkView<int8_t>& chunk, ChunkPrefetcher<int8_t>& ahead) {
  for (int64_t i = 0; i < chunk.count; ++i) {
    widen_values(chunk.v[i], D, w.wide);
    mix(w.p + i * 32, padded, D, ChunkView<Act>{{}, {w.wide}, 1, 32, {}, {}}, ahead, w.o);
  }
}

// Sixteen probabilities of the chunk, from token i on, as they meet the stored values.
template <typename Act>
static inline v16 weigh(const ChunkView<Act>&, int64_t, v16 e) { return e; }
static inline v16 weigh(const ChunkView<int8_t>& chunk, int64_t i, v16 e) { return e * vload(chunk.v_scale[i / 32] + i % 32); }

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
template <typename Act, typename Cache>
static inline void softmax_row(const RowView& row, int64_t chunk_start, const ChunkView<Cache>& chunk, float* s, Act* p, float* o, int64_t D,
                               float& max, float& sum) {
  const float kNegative = -__builtin_inff();
  const int64_t width = chunk.count * 32;
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
    const v16 zero = vset(0.0f);
    v16 e = exponential(p, vload(s + i), top), weighed = weigh(chunk, i, e);
    if (high < i + 16) e = vselect_below(high - i, e, zero), weighed = vselect_below(high - i, weighed, zero);
    if (low > i) e = vselect_below(low - i, zero, e), weighed = vselect_below(low - i, zero, weighed);
    total = total + e;
    vstore_act<Act>(p + i, weighed);
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

template <typename Cache>
static inline ChunkView<Cache> view_chunk(const Op& op, const Step& step, const TileWork& work, int64_t start) {
  const int64_t G = op.n[1], D = op.n[2], size = op.n[4];
  const int64_t block = sizeof(Cache) == 1 ? int8_block_bytes(D, size) : size * D;  // elements
  const int32_t* table = step.block_tables + work.b * step.max_blocks;
  ChunkView<Cache> chunk;
  chunk.count = start < work.end ? (min64(kChunk, work.end - start) + 31) / 32 : 0;
  chunk.size = size;
  for (int64_t i = 0; i < chunk.count; ++i) {
    const int64_t place = start + i * 32, inside = place % size, base = (table[place / size] * G + work.g) * block;
    chunk.k[i] = (const Cache*)op.p[3] + base + inside * (sizeof(Cache) == 4 ? 1 : 2);
    chunk.v[i] = (const Cache*)op.p[4] + base + inside * D;
    if (sizeof(Cache) > 1) continue;
    chunk.k_scale[i] = (const float*)((const Cache*)op.p[3] + base + size * D) + inside;
    chunk.v_scale[i] = (const float*)((const Cache*)op.p[4] + base + size * D) + inside;
  }
  return chunk;
}

// `next` is what this thread does after `work`; its first keys are fetched at the end of this.
template <typename Act, typename Cache>
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
  ChunkView<Cache> chunk = view_chunk<Cache>(op, step, work, work.first_key);
  ChunkPrefetcher<Cache> ahead;
  for (int64_t start = work.first_key; start < work.end; start += kChunk) {
    ChunkView<Cache> coming = view_chunk<Cache>(op, step, work, start + kChunk);
    if (rows <= 16) {  // a full tile computes longer than its keys take to come
      const ChunkView<Cache> wanted = coming.count || next.b < 0 ? coming : view_chunk<Cache>(op, step, next, next.first_key);
      ahead.aim(wanted, D, chunk.count * D / 16);
    }
    chunk_scores(w, rows, padded, D, chunk, ahead);
    for (int64_t r = 0; r < rows; ++r)
      softmax_row(view[r], start, chunk, w.s + r * kChunk, w.p + r * kChunk, w.o + r * D, D, w.max[r], w.sum[r]);
    chunk_mix(w, padded, D, chunk, ahead);
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
    const bool is_f32 = ctx.act_dtype == kF32, is_int8 = op.n[5] == kI8;
    if (is_f32 && is_int8) attention_tile<float, int8_t>(op, ctx, work, next);
    else if (is_f32) attention_tile<float, float>(op, ctx, work, next);
    else if (is_int8) attention_tile<bf16, int8_t>(op, ctx, work, next);
    else attention_tile<bf16, bf16>(op, ctx, work, next);
    work = next;
  }
}

}  // namespace MILLPOND_ISA
}  // namespace millpond
