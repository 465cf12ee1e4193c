// paged attention: causal, grouped heads, sliding window, ALiBi; decode rows and prefill rows by one path.
//
// A tile is up to 32 rows of one sequence and kv head, a row being (token, query head of the group), so decode with grouped heads
// fills matrix rows too. Keys are read in chunks of 128 tokens at absolute positions with an online softmax (Milakov and
// Gimelshein 2018; Dao et al. 2022), and every 512 tokens the softmax begins anew and the results are merged (flash decoding): few
// tiles with long contexts can so be shared by threads part by part, and a row's result depends on its own sequence alone, not on
// the batch, not on where prefill was cut, not on who computed a part. The cache is stored in the order the matrix units want
// (elementwise.h), nothing is transposed here. An int8 cache is multiplied as it lies (attention_int8.h).
#pragma once
#include "attention_int8.h"

namespace millpond {
namespace MILLPOND_ISA {

constexpr int64_t kPart = kPartTokens;  // a multiple of kChunk

// Everything a tile works with.
template <typename Act>
struct TileScratch {
  AttentionScratch<Act> now;    // the part at work
  AttentionScratch<Act> whole;  // the parts before it; only its results are used
};

// One chunk of keys for a tile's rows.
template <typename Act, typename Cache>
static inline void attend_chunk(AttentionScratch<Act>& w, const RowView* view, int64_t rows, int64_t D, int64_t start,
                                const ChunkView<Cache>& chunk, ChunkPrefetcher<Cache>& ahead) {
  scores(w, rows, D, chunk, ahead);
  softmax_rows(view, rows, start, chunk, w, D);
  mix(w, rows, D, chunk, ahead);
}

// One piece of work: a tile of rows of one sequence and kv head, and the keys it may see, or one part of them.
struct TileWork {
  int64_t b, g, tile;      // b < 0: none
  int64_t row0, rows;      // of the sequence's (token, head) rows
  int64_t first_key, end;  // a multiple of kChunk; one past the last key
  int64_t part, parts;     // this one, and how many the tile has; parts 0: the tile is one piece
  int64_t place;           // of the tile's first part among all parts
};

static inline TileWork find_work(const Op& op, const Context& ctx, int64_t piece) {
  const Step& step = *ctx.step;
  const int64_t G = op.n[1], heads = op.n[0] / G, window = op.n[3], tiles = ctx.tile_start[step.B], split = max64(1, ctx.parts.each);
  TileWork work{-1, 0, 0, 0, 0, 0, 0, 0, 0, 0};
  if (piece >= tiles * G * split) return work;
  const int64_t each = tiles * split, inside = piece % each;
  const int64_t tile = tiles - 1 - inside / split;  // a sequence's last tiles see the most keys: first
  int64_t low = 0, high = step.B - 1;
  while (low < high) {
    const int64_t middle = (low + high + 1) / 2;
    if (ctx.tile_start[middle] <= tile) low = middle;
    else high = middle - 1;
  }
  work.b = low, work.g = piece / each, work.tile = tile - ctx.tile_start[low];
  const int64_t query0 = step.query_start[low], queries = step.query_start[low + 1] - query0;
  work.row0 = work.tile * kTileRows;
  work.rows = min64(kTileRows, queries * heads - work.row0);
  const int64_t lowest = step.positions[query0 + work.row0 / heads];
  work.first_key = window > 0 ? max64(0, lowest - window + 1) / kChunk * kChunk : 0;
  work.end = step.positions[query0 + (work.row0 + work.rows - 1) / heads] + 1;
  if (!ctx.parts.each) return work;
  const int64_t first = work.first_key / kPart;
  work.part = inside % split, work.parts = (work.end + kPart - 1) / kPart - first, work.place = piece - work.part;
  work.first_key = max64(work.first_key, (first + work.part) * kPart);
  work.end = min64(work.end, (first + work.part + 1) * kPart);  // not above first_key: the tile has fewer parts
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
    chunk.k[i] = (const Cache*)op.p[3] + base + inside * int64_t(4 / sizeof(Cache));
    chunk.v[i] = (const Cache*)op.p[4] + base + inside * D;
    if (sizeof(Cache) > 1) continue;
    chunk.k_scale[i] = (const float*)((const Cache*)op.p[3] + base + size * D) + inside;
    chunk.v_scale[i] = (const float*)((const Cache*)op.p[4] + base + size * D) + inside;
  }
  return chunk;
}

// Where a part's results wait for the others'.
static inline Results part_results(const Context& ctx, const TileWork& work, int64_t part) {
  float* data = ctx.parts.data + (work.place + part) * kTileRows * (kMaxHeadDim + 2);
  return {data, data + kTileRows * kMaxHeadDim, data + kTileRows * (kMaxHeadDim + 1)};
}

// Leaves a part's results with the others'; the thread that brings the last one merges them, in order. False: others are to come.
template <typename Act>
static inline bool gather_parts(const Context& ctx, const TileWork& work, int64_t D, AttentionScratch<Act>& w) {
  copy_results(part_results(ctx, work, work.part), results_of(w), work.rows, D);
  std::atomic<int32_t>& done = ctx.parts.done[work.place / ctx.parts.each];
  if (done.fetch_add(1, std::memory_order_acq_rel) + 1 < work.parts) return false;
  done.store(0, std::memory_order_relaxed);  // for the next layer; a barrier comes before it
  copy_results(results_of(w), part_results(ctx, work, 0), work.rows, D);
  for (int64_t part = 1; part < work.parts; ++part) merge_results(results_of(w), part_results(ctx, work, part), work.rows, D);
  return true;
}

// Takes keys [start, end), at most kPart of them; the results are those of these keys alone.
template <typename Act, typename Cache>
static inline void attend_part(const Op& op, const Context& ctx, const TileWork& work, const TileWork& next, int64_t start, int64_t end,
                               const RowView* view, AttentionScratch<Act>& w, ChunkPrefetcher<Cache>& ahead) {
  const Step& step = *ctx.step;
  const int64_t D = op.n[2];
  const int64_t cleared = sizeof(Cache) == 1 ? work.rows : (work.rows + 15) / 16 * 16;  // the rest is added to as well
  memset(w.o, 0, cleared * D * sizeof(float));
  for (int64_t r = 0; r < work.rows; ++r) w.max[r] = -__builtin_inff(), vstore(w.sums + r * 16, vset(0.0f));
  ChunkView<Cache> chunk = view_chunk<Cache>(op, step, work, start);
  for (; start < end; start += kChunk) {
    const ChunkView<Cache> coming = view_chunk<Cache>(op, step, work, start + kChunk);
    if (work.rows <= 16) {  // a full tile computes longer than its keys take to come
      const ChunkView<Cache> wanted = coming.count || next.b < 0 ? coming : view_chunk<Cache>(op, step, next, next.first_key);
      ahead.aim(wanted, D, chunk.count * D / 16);
    }
    attend_chunk(w, view, work.rows, D, start, chunk, ahead);
    chunk = coming;
  }
  for (int64_t r = 0; r < work.rows; ++r) w.sum[r] = vsum(vload(w.sums + r * 16));
}

// Whether anybody reads what this tile computes.
static inline bool is_wanted(const Op& op, const Context& ctx, const TileWork& work) {
  if (!(op.flags & kLogitRowsAlone)) return true;
  const int64_t heads = op.n[0] / op.n[1], query0 = ctx.step->query_start[work.b];
  const int64_t first = query0 + work.row0 / heads, last = query0 + (work.row0 + work.rows - 1) / heads;
  return memchr(ctx.has_logits + first, 1, last + 1 - first) != nullptr;
}

// `next` is what this thread does after `work`; its first keys are fetched at the end of this.
template <typename Act, typename Cache>
static void attention_tile(const Op& op, const Context& ctx, const TileWork& work, const TileWork& next) {
  if (work.first_key >= work.end || !is_wanted(op, ctx, work)) return;
  const Step& step = *ctx.step;
  const Buffer &in = ctx.buffers[op.in], &out = ctx.buffers[op.out];
  const int64_t H = op.n[0], G = op.n[1], D = op.n[2], window = op.n[3], heads = H / G;
  const int64_t query0 = step.query_start[work.b], rows = work.rows, padded = (rows + 15) & ~int64_t(15);
  const float* slopes = (const float*)op.p[0];
  TileScratch<Act>& scratch = *(TileScratch<Act>*)ctx.scratch;
  AttentionScratch<Act>& w = scratch.now;
  RowView view[kTileRows];
  for (int64_t r = 0; r < rows; ++r) {
    int64_t token = query0 + (work.row0 + r) / heads, head = work.g * heads + (work.row0 + r) % heads;
    const char* q = (const char*)((const Act*)in.data + token * in.stride + head * D);
    for (int64_t i = 0; i < D * int64_t(sizeof(Act)); i += 64) bstore((char*)(w.q + r * D) + i, bload(q + i));
    int64_t position = step.positions[token];
    view[r] = {position, window > 0 ? max64(0, position - window + 1) : 0, slopes ? slopes[head] : 0.0f};
  }
  if (sizeof(Cache) == 1) {
    quantise_queries(w, rows, padded, D);
  } else if (padded > rows) {
    memset(w.q + rows * D, 0, (padded - rows) * D * sizeof(Act));
    memset(w.p + rows * kChunk, 0, (padded - rows) * kChunk * sizeof(Act));
  }
  ChunkPrefetcher<Cache> ahead;
  const AttentionScratch<Act>* result = &w;
  for (int64_t start = work.first_key, end; start < work.end; start = end) {
    end = min64(work.end, (start / kPart + 1) * kPart);
    attend_part(op, ctx, work, next, start, end, view, w, ahead);
    if (start == work.first_key && end == work.end) break;
    if (start == work.first_key) copy_results(results_of(scratch.whole), results_of(w), rows, D);
    else merge_results(results_of(scratch.whole), results_of(w), rows, D);
    result = &scratch.whole;
  }
  if (work.parts && !gather_parts(ctx, work, D, w)) return;
  for (int64_t r = 0; r < rows; ++r) {
    int64_t token = query0 + (work.row0 + r) / heads, head = work.g * heads + (work.row0 + r) % heads;
    Act* y = (Act*)out.data + token * out.stride + head * D;
    const v16 inverse = vset(1.0f / result->sum[r]);
    const float* o = result->o + r * D;
    if (sizeof(Cache) == 1 && is_rotated_head(D)) hadamard_row(o, D, 1.0f, w.o), o = w.o;
    for (int64_t d = 0; d < D; d += 16) vstore_act<Act>(y + d, vload(o + d) * inverse);
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
