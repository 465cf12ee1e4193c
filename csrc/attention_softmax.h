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
  // Of an int8 cache: queries and weights as integers with a scale a row, a chunk's values side by side, sums of a chunk.
  alignas(64) int8_t q_codes[kTileRows * kMaxHeadDim];
  alignas(64) uint8_t p_codes[kTileRows * kChunk];
  alignas(64) int8_t values[kChunk * kMaxHeadDim];
  alignas(64) int32_t chunk_sums[kTileRows * kMaxHeadDim];
  float q_scale[kTileRows], p_scale[kTileRows];
  int32_t q_sum[kTileRows];  // of a row's codes
  // Where rows are relative to the largest score of one chunk (softmax16.h): that score, sums, and what becomes of what there was.
  alignas(64) float chunk_max[kTileRows], fade[kTileRows];
  alignas(64) int32_t fresh[kTileRows * 16];
  alignas(64) float o[kTileRows * kMaxHeadDim];
  alignas(64) float sums[kTileRows * 16];  // of probabilities, sixteen a row, while a part is at work
  float max[kTileRows], sum[kTileRows];
};

struct RowView {
  int64_t position;    // of the query token
  int64_t first_key;   // lowest position it may see
  float slope;         // ALiBi, 0 for none
};

// Where the results of a tile's rows so far are kept: o[rows][D], and for each row its largest score and the sum of its probabilities.
struct Results {
  float *o, *max, *sum;
};

template <typename Act>
static inline Results results_of(AttentionScratch<Act>& w) { return {w.o, w.max, w.sum}; }

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

// Sixteen scores of row r from token i of the chunk on. With an int8 cache they are integers in memory, and lack the row's scale here.
template <typename Act>
static inline v16 load_raw_scores(const AttentionScratch<Act>& w, const ChunkView<Act>&, int64_t r, int64_t i) { return vload(w.s + r * kChunk + i); }
template <typename Act>
static inline v16 load_raw_scores(const AttentionScratch<Act>& w, const ChunkView<int8_t>& chunk, int64_t r, int64_t i) {
  return vload_i32((const int32_t*)w.s + r * kChunk + i) * vload(chunk.k_scale[i / 32] + i % 32);
}
template <typename Act, typename Cache>
static inline v16 load_scores(const AttentionScratch<Act>& w, const ChunkView<Cache>& chunk, int64_t r, int64_t i) {
  const v16 raw = load_raw_scores(w, chunk, r, i);
  return sizeof(Cache) == 1 ? raw * vset(w.q_scale[r]) : raw;
}

// Stores what row r weighs the chunk's values with, sixteen times kChunk / 16 probabilities of which the first `count` are set.
template <typename Act>
static inline void store_weights(AttentionScratch<Act>& w, const ChunkView<Act>&, int64_t r, const v16* e, int64_t count) {
  for (int64_t i = 0; i < count; ++i) vstore_act<Act>(w.p + r * kChunk + i * 16, e[i]);
  for (int64_t i = count; i < kChunk / 16; ++i) vstore_act<Act>(w.p + r * kChunk + i * 16, vset(0.0f));
}
// With an int8 cache: times the values' scales, as integers with one scale for the row's chunk.
template <typename Act>
static inline void store_weights(AttentionScratch<Act>& w, const ChunkView<int8_t>& chunk, int64_t r, v16* e, int64_t count) {
  constexpr float kMost = MILLPOND_BF16 ? 255.0f : 127.0f;  // where there is no VNNI, sums of two products have 16 bits
  v16 peak = vset(0.0f), poison = vset(0.0f);
  for (int64_t i = 0; i < count; ++i) {
    const v16 weighed = e[i] * vload(chunk.v_scale[i / 2] + i % 2 * 16);
    e[i] = vselect_greater(e[i], vset(0.0f), weighed, vset(0.0f));  // the scale of a hidden token may be anything
    peak = vmax(peak, e[i]);
    poison = vfma(e[i], vset(0.0f), poison);
  }
  const float largest = vhmax(peak);
  w.p_scale[r] = largest / kMost + vsum(poison);  // NaN where a token that the row sees is poisoned
  const v16 inverse = vset(largest > 0.0f ? kMost / largest : 0.0f);
  int8_t* codes = (int8_t*)w.p_codes + r * kChunk;
  for (int64_t i = 0; i < count; ++i) vstore_bytes(codes + i * 16, e[i] * inverse);
  memset(codes + count * 16, 0, kChunk - count * 16);
}

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
  const Seen seen = seen_of(row, chunk_start, chunk.count * 32);
  v16 x[kChunk / 16];
  if (seen.low <= 0 && seen.high >= kChunk && row.slope == 0.0f && w.max[r] != -__builtin_inff()) {  // it sees all, and 128 of them
    v16 best = vset(w.max[r]);
    for (int i = 0; i < kChunk / 16; ++i) x[i] = load_scores(w, chunk, r, i * 16), best = vmax(best, x[i]);
    v16 sums = move_maximum(w, r, D, vhmax(best));
    const Exponential<Act> exponential(w.max[r]);
    for (int i = 0; i < kChunk / 16; ++i) x[i] = exponential(x[i]), sums = sums + x[i];
    vstore(w.sums + r * 16, sums);
    return store_weights(w, chunk, r, x, kChunk / 16);
  }
  float* s = w.s + r * kChunk;
  if (sizeof(Cache) == 1)
    for (int64_t i = 0; i < seen.used; i += 16) vstore(s + i, load_scores(w, chunk, r, i));
  const float new_max = largest_score(row, chunk_start, seen, s, w.max[r]);
  int64_t count = 0;
  if (new_max != -__builtin_inff()) {  // it sees something by now
    v16 sums = move_maximum(w, r, D, new_max);
    const Exponential<Act> exponential(new_max);
    for (; count * 16 < seen.used; ++count) {
      x[count] = exponential(vload(s + count * 16));
      hide(seen, count * 16, x[count]);
      sums = sums + x[count];
    }
    vstore(w.sums + r * 16, sums);
  }
  store_weights(w, chunk, r, x, count);
}

static inline void copy_results(const Results& to, const Results& from, int64_t rows, int64_t D) {
  memcpy(to.o, from.o, rows * D * sizeof(float));
  memcpy(to.max, from.max, rows * sizeof(float));
  memcpy(to.sum, from.sum, rows * sizeof(float));
}

// Adds the results of later keys; a row that saw none of them stays as it is, bit for bit. Both have room for whole groups of sixteen rows.
static inline void merge_results(const Results& into, const Results& later, int64_t rows, int64_t D) {
  const v16 none = vset(-__builtin_inff()), zero = vset(0.0f);
  for (int64_t first = 0; first < rows; first += 16) {
    const v16 old = vload(into.max + first), coming = vload(later.max + first), top = vmax(old, coming);
    alignas(64) float a[16], b[16];
    vstore(a, vselect_greater(old, none, vselect_greater(coming, none, vexp(old - top), vset(1.0f)), zero));
    vstore(b, vselect_greater(coming, none, vexp(coming - top), zero));
    vstore(into.max + first, top);
    vstore(into.sum + first, vfma(vload(later.sum + first), vload(b), vload(into.sum + first) * vload(a)));
    for (int64_t r = 0; r < min64(16, rows - first); ++r) {
      float* o = into.o + (first + r) * D;
      const float* more = later.o + (first + r) * D;
      for (int64_t d = 0; d < D; d += 16) vstore(o + d, vfma(vload(more + d), vset(b[r]), vload(o + d) * vset(a[r])));
    }
  }
}

}  // namespace MILLPOND_ISA
}  // namespace millpond
