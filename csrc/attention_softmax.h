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
  alignas(64) float sums[kTileRows * 16];  // of probabilities, sixteen a row, while a part is at work
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

// e^(x - largest), as exact as what it is stored as.
template <typename Act>
struct Exponential;
template <>
struct Exponential<float> {
  v16 largest;
  explicit Exponential(float x) : largest(vset(x)) {}
  inline v16 operator()(v16 x) const { return vexp(x - largest); }
};
template <>
struct Exponential<bf16> {
  v16 offset;
  explicit Exponential(float x) : offset(vset(-1.44269504f * x)) {}
  inline v16 operator()(v16 x) const { return vexp2_coarse(vfma(x, vset(1.44269504f), offset)); }
};

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

// Rescales what row r has for a new maximum; returns its sums.
template <typename Act>
static inline v16 move_maximum(AttentionScratch<Act>& w, int64_t r, int64_t D, float new_max) {
  const v16 sums = vload(w.sums + r * 16);
  if (!(new_max > w.max[r])) return sums;
  const float old = w.max[r];
  w.max[r] = new_max;
  if (old == -__builtin_inff()) return sums;
  float change[16];
  vstore(change, vexp(vset(old - new_max)));
  const v16 factor = vset(change[0]);
  for (float *o = w.o + r * D, *last = o + D; o < last; o += 16) vstore(o, vload(o) * factor);
  return sums * factor;
}

// Exponentiates row r of a chunk, rescales its output, and updates its maximum and sums.
template <typename Act, typename Cache>
static inline void softmax_row(const RowView& row, int64_t chunk_start, const ChunkView<Cache>& chunk, AttentionScratch<Act>& w, int64_t r, int64_t D) {
  const int64_t width = chunk.count * 32;
  const Seen seen = seen_of(row, chunk_start, width);
  float* s = w.s + r * kChunk;
  Act* p = w.p + r * kChunk;
  if (seen.low <= 0 && seen.high >= kChunk && row.slope == 0.0f && w.max[r] != -__builtin_inff()) {  // it sees all, and 128 of them
    v16 x[kChunk / 16], best = vset(w.max[r]);
    for (int i = 0; i < kChunk / 16; ++i) x[i] = vload(s + i * 16), best = vmax(best, x[i]);
    v16 sums = move_maximum(w, r, D, vhmax(best));
    const Exponential<Act> exponential(w.max[r]);
    for (int i = 0; i < kChunk / 16; ++i) {
      const v16 e = exponential(x[i]);
      sums = sums + e;
      vstore_act<Act>(p + i * 16, weigh(chunk, i * 16, e));
    }
    vstore(w.sums + r * 16, sums);
    return;
  }
  const float new_max = largest_score(row, chunk_start, seen, s, w.max[r]);
  int64_t i = 0;
  if (new_max != -__builtin_inff()) {  // it sees something by now
    v16 sums = move_maximum(w, r, D, new_max);
    const Exponential<Act> exponential(new_max);
    for (; i < seen.used; i += 16) {
      v16 e = exponential(vload(s + i)), weighed = weigh(chunk, i, e);
      hide(seen, i, e), hide(seen, i, weighed);
      sums = sums + e;
      vstore_act<Act>(p + i, weighed);
    }
    vstore(w.sums + r * 16, sums);
  }
  for (; i < width; i += 16) vstore_act<Act>(p + i, vset(0.0f));
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
