// What a tile of attention keeps of its rows, and the online softmax over a chunk of keys (Milakov and Gimelshein 2018).
#pragma once
#include "attention_chunk.h"
#include "kv_int8.h"

namespace millpond {
namespace MILLPOND_ISA {

constexpr int kMaxHeadDim = kMostHeadDim;

template <typename Act>
struct AttentionScratch {
  alignas(64) Act q[kTileRows * kMaxHeadDim];
  alignas(64) Act p[kTileRows * kChunk];
  alignas(64) float s[kTileRows * kChunk];
  alignas(64) Act wide[32 * kMaxHeadDim];  // 32 tokens of an int8 cache
  alignas(64) float o[kTileRows * kMaxHeadDim];
  float max[kTileRows], sum[kTileRows];
};

struct RowView {
  int64_t position;    // of the query token
  int64_t first_key;   // lowest position it may see
  float slope;         // ALiBi, 0 for none
};

// Where a row's results so far are kept.
struct OutputRow {
  float *o, *max, *sum;
  int64_t D;
};

template <typename Act>
static inline OutputRow output_row(AttentionScratch<Act>& w, int64_t r, int64_t D) { return {w.o + r * D, w.max + r, w.sum + r, D}; }

// What a row sees of a chunk: keys [low, high) of it. Those from `used` on are not looked at: neither score nor exponential.
struct Seen {
  int64_t low, high, used;
};

static inline Seen seen_of(const RowView& row, int64_t chunk_start, int64_t width) {
  const int64_t high = row.position - chunk_start + 1;
  return {row.first_key - chunk_start, high, max64(0, min64(width, (high + 15) & ~int64_t(15)))};
}

// Sixteen probabilities from key i on: 0 where hidden. A hidden score is -inf and its exponential, clamped, some 1e-38; what it
// meets may be anything.
static inline void hide(const Seen& seen, int64_t i, v16& e) {
  if (seen.high < i + 16) e = vselect_below(seen.high - i, e, vset(0.0f));
  if (seen.low > i) e = vselect_below(seen.low - i, vset(0.0f), e);
}

static inline v16 exponential(const float*, v16 x, v16 max) { return vexp(x - max); }
static inline v16 exponential(const bf16*, v16 x, v16 max) { return vexp2_coarse((x - max) * vset(1.44269504f)); }

// Sixteen probabilities of the chunk, from token i on, as they meet the stored values.
template <typename Act>
static inline v16 weigh(const ChunkView<Act>&, int64_t, v16 e) { return e; }
static inline v16 weigh(const ChunkView<int8_t>& chunk, int64_t i, v16 e) { return e * vload(chunk.v_scale[i / 32] + i % 32); }

// Adds the row's ALiBi bias and hides what it must not see.
static inline void mask_row(const RowView& row, int64_t chunk_start, const Seen& seen, float* s) {
  const float kNegative = -__builtin_inff();
  static const float lane[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  for (int64_t i = 0; i < seen.used; i += 16) {
    v16 x = vload(s + i);
    if (row.slope != 0.0f) x = vfma(vload(lane) + vset(float(chunk_start + i - row.position)), vset(row.slope), x);
    if (seen.high < i + 16) x = vselect_below(seen.high - i, x, vset(kNegative));
    if (seen.low > i) x = vselect_below(seen.low - i, vset(kNegative), x);
    vstore(s + i, x);
  }
}

// The largest score of the row so far; masks the chunk's first, where there is something to mask.
static inline float largest_score(const RowView& row, int64_t chunk_start, const Seen& seen, float* s, float max) {
  if (row.slope != 0.0f || seen.low > 0 || seen.high < seen.used) mask_row(row, chunk_start, seen, s);
  v16 best = vset(-__builtin_inff());
  for (int64_t i = 0; i < seen.used; i += 16) best = vmax(best, vload(s + i));
  const float here = vhmax(best);
  return here > max ? here : max;
}

// Rescales what a row has for a new maximum.
static inline void move_maximum(const OutputRow& out, float new_max) {
  if (!(new_max > *out.max)) return;
  if (*out.max != -__builtin_inff()) {
    float change[16];
    vstore(change, vexp(vset(*out.max - new_max)));
    *out.sum *= change[0];
    for (int64_t d = 0; d < out.D; d += 16) vstore(out.o + d, vload(out.o + d) * vset(change[0]));
  }
  *out.max = new_max;
}

// Exponentiates one row of a chunk, rescales its output, and updates the running maximum and sum.
template <typename Act, typename Cache>
static inline void softmax_row(const RowView& row, int64_t chunk_start, const ChunkView<Cache>& chunk, float* s, Act* p, const OutputRow& out) {
  const int64_t width = chunk.count * 32;
  const Seen seen = seen_of(row, chunk_start, width);
  const float new_max = largest_score(row, chunk_start, seen, s, *out.max);
  if (new_max == -__builtin_inff()) {  // nothing to see yet
    for (int64_t i = 0; i < width; i += 16) vstore_act<Act>(p + i, vset(0.0f));
    return;
  }
  v16 total = vset(0.0f);
  const v16 top = vset(new_max);
  for (int64_t i = 0; i < seen.used; i += 16) {
    v16 e = exponential(p, vload(s + i), top), weighed = weigh(chunk, i, e);
    hide(seen, i, e), hide(seen, i, weighed);
    total = total + e;
    vstore_act<Act>(p + i, weighed);
  }
  for (int64_t i = seen.used; i < width; i += 16) vstore_act<Act>(p + i, vset(0.0f));
  move_maximum(out, new_max);
  *out.sum += vsum(total);
}

// Adds the results of later keys to a row's; a row that saw none of them stays as it is, bit for bit.
static inline void merge_rows(const OutputRow& into, const OutputRow& later) {
  const float kNegative = -__builtin_inff();
  if (*later.max == kNegative) return;
  if (*into.max == kNegative) {
    *into.max = *later.max, *into.sum = *later.sum;
    memcpy(into.o, later.o, into.D * sizeof(float));
    return;
  }
  const float top = *into.max > *later.max ? *into.max : *later.max;
  float a[16], b[16];
  vstore(a, vexp(vset(*into.max - top)));
  vstore(b, vexp(vset(*later.max - top)));
  *into.max = top;
  *into.sum = *into.sum * a[0] + *later.sum * b[0];
  for (int64_t d = 0; d < into.D; d += 16) vstore(into.o + d, vfma(vload(later.o + d), vset(b[0]), vload(into.o + d) * vset(a[0])));
}

}  // namespace MILLPOND_ISA
}  // namespace millpond
